"""Every way to name a teacher, and every way to name a wrong one."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from deit_fast.config import Config
from deit_fast.model import IMAGENET_NORMALISATION
from deit_fast.run import checkpoint
from deit_fast.teacher.load import efficientnet_lite0_weights, load_teacher, own_view, recipe_config
from deit_fast.weights.build import Frozen, normalisation, timm_model
from deit_fast.weights.pretrained import load_pretrained
from deit_fast.weights.trained import classifier

HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLASSES = list("abcd")
MODEL, SIDE = "regnety_160", 32
CONFIG = Config(data="photos", image_size=SIDE, distill="hard", teacher="x")


def of(config: Config) -> torch.nn.Module:
    return classifier(config.model, config.data.image_size, 4)


@pytest.fixture(scope="module")
def lite0_weights():
    return efficientnet_lite0_weights()


def write_run(folder, *, average_is_better: bool | None) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A finished run with two different models as last weights and as average; None: without an average."""
    config = CONFIG.replace(model="test_vit", distill="none", teacher="", weights="timm", out=str(folder))
    torch.manual_seed(0)
    model, average = (timm.create_model("test_vit", num_classes=4, img_size=32) for _ in range(2))
    folder.mkdir()
    checkpoint.write_json(folder / "config.json", config.flat())
    checkpoint.write_json(folder / "data.json", {"classes": CLASSES})
    ema = None if average_is_better is None else {"cls": {"top1": 60.0 if average_is_better else 40.0}}
    scores = {"student": {"cls": {"top1": 50.0}}, "ema": ema}
    checkpoint.write_json(folder / "summary.json", {"teacher": None, **scores})
    tensors = checkpoint.tensors_of(model, average, torch.optim.AdamW(model.parameters()))
    checkpoint.save(folder, 1, tensors, {}, keep=1)
    return model, average


def test_the_packaged_imagenet_weights_fit_timms_model_and_recognise_a_photograph(lite0_weights) -> None:
    skimage_data = pytest.importorskip("skimage.data")
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(lite0_weights, strict=True)
    assert len(lite0_weights) == 296
    image = torch.from_numpy(skimage_data.coffee()[:, 100:500]).permute(2, 0, 1)[None] / 255
    image = torch.nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True)
    assert model(image * 2 - 1).argmax().item() == 967  # espresso


def test_a_teacher_sees_its_own_normalisation_and_stays_frozen() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=4)
    model.pretrained_cfg = {"mean": HALF[0], "std": HALF[1]}
    teacher = Frozen(model, IMAGENET_NORMALISATION).train()
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in IMAGENET_NORMALISATION)
    torch.testing.assert_close(teacher((pixels - mean) / std), model(pixels * 2 - 1), rtol=1e-4, atol=1e-5)
    assert not teacher.training and not model.training
    assert not teacher(pixels).requires_grad and not any(p.requires_grad for p in teacher.parameters())


def test_normalisation_comes_from_the_model() -> None:
    assert normalisation(timm.create_model("tf_efficientnet_lite0")) == HALF
    assert normalisation(torch.nn.Linear(1, 1)) == IMAGENET_NORMALISATION


@pytest.mark.parametrize("average_is_better", [None, False, True])
def test_a_finished_run(tmp_path, average_is_better: bool | None) -> None:
    model, average = write_run(tmp_path / "run", average_is_better=average_is_better)
    teacher = load_teacher(str(tmp_path / "run"), MODEL, SIDE, CLASSES, IMAGENET_NORMALISATION)
    for name, value in (average if average_is_better else model).state_dict().items():
        assert torch.equal(teacher.model.state_dict()[name], value)


def test_a_weights_file_and_its_architecture(tmp_path) -> None:
    model = timm.create_model("test_resnet", num_classes=4)
    save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    teacher = load_teacher(str(tmp_path / "teacher.safetensors"), "test_resnet", SIDE, CLASSES, IMAGENET_NORMALISATION)
    assert torch.equal(next(teacher.model.parameters()), next(model.parameters()))


def test_a_function_of_the_users(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_teachers.py").write_text(
        "from torch import nn\n"
        "def tiny(): return nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))\n"
        "def nothing(): return 3\n"
        "def broken(): raise KeyError('weights')\n"
        "def segmenter(): return nn.Conv2d(3, 4, 1)\n"
        "def demanding(): return nn.Sequential(nn.Flatten(), nn.Linear(7, 4))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    teacher = load_teacher("my_teachers:tiny", MODEL, SIDE, CLASSES, IMAGENET_NORMALISATION)
    assert teacher(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    for spec, says in [
        ("my_teachers:nothing", "returned a int"),
        ("my_teachers:none", "has no function none"),
        ("my_teachers:broken", "raised KeyError"),
        ("my_teachers:segmenter", r"is no classifier: for one image it gives shape \(1, 4, 32, 32\)"),
        ("my_teachers:demanding", "fails on an image of 32 x 32 pixels"),
        ("no_such_module:tiny", "cannot be imported"),
        (":tiny", "neither a file nor module:function"),
    ]:
        with pytest.raises(ValueError, match=says):
            load_teacher(spec, MODEL, SIDE, CLASSES, IMAGENET_NORMALISATION)


def test_a_recipe_teacher_shares_the_students_data_and_lies_beside_it() -> None:
    student = CONFIG.replace(data="/flowers", flip=0.0, data_seed=7, teacher="recipe:demo-teacher", out="a/b")
    config = recipe_config(student)
    assert (config.data.data, config.data.image_size, config.data.flip, config.optim.data_seed, config.run.out) == (
        "/flowers",
        32,
        0.0,
        7,
        "a/b-teacher",
    )
    assert recipe_config(CONFIG) is None
    with pytest.raises(ValueError, match="did you mean --recipe demo-teacher"):
        recipe_config(student.replace(teacher="recipe:demo-teachr"))


def test_other_classes_than_the_data_say_how_to_get_a_teacher(tmp_path) -> None:
    write_run(tmp_path / "run", average_is_better=False)
    with pytest.raises(ValueError, match=r"knows 4 classes, the data has 37: fine-tune one .* --recipe teacher"):
        load_teacher(str(tmp_path / "run"), MODEL, SIDE, [str(c) for c in range(37)], IMAGENET_NORMALISATION)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("regnety_16", "for --teacher, neither a path here nor a name: did you mean .*regnety_16"),
        ("runs/nothing.pth", "there is no file or folder runs/nothing.pth for --teacher: check the path"),
        ("recipe:demo-teacher", "is trained by python -m deit_fast.train: type the run folder"),
        ("a/b/c", "there is no file or folder a/b/c for --teacher"),
        ("https://example.org/a.pth", "is an address for --teacher: download the file, and type its path"),
    ],
)
def test_an_unknown_teacher(spec: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_teacher(spec, MODEL, SIDE, CLASSES, IMAGENET_NORMALISATION)


def test_other_classes_of_the_same_number_are_refused(tmp_path) -> None:
    write_run(tmp_path / "run", average_is_better=False)
    with pytest.raises(ValueError, match="its class 2 is c, the data's is e"):
        load_teacher(str(tmp_path / "run"), MODEL, SIDE, list("abef"), IMAGENET_NORMALISATION)


def test_a_run_of_another_image_size_is_resized(tmp_path) -> None:
    model, _ = write_run(tmp_path / "run", average_is_better=False)
    teacher = load_teacher(str(tmp_path / "run"), MODEL, 64, CLASSES, IMAGENET_NORMALISATION)
    assert teacher.model.pos_embed.shape[1] != model.pos_embed.shape[1]


def test_a_transformer_from_a_file_is_resized_to_the_images(tmp_path) -> None:
    model = timm.create_model("test_vit", num_classes=4)  # of 160 x 160 pixels
    save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    spec = str(tmp_path / "teacher.safetensors")
    teacher = load_teacher(spec, "test_vit", SIDE, CLASSES, IMAGENET_NORMALISATION)
    assert teacher.model.pos_embed.shape[1] == 5 < model.pos_embed.shape[1]
    assert own_view(spec, teacher.model)[0] == 160


@pytest.mark.parametrize("name", ["summary.json", "data.json", "config.json"])
def test_a_damaged_file_of_a_run_is_named(tmp_path, name: str) -> None:
    write_run(tmp_path / "run", average_is_better=False)
    (tmp_path / "run" / name).write_text("{")
    with pytest.raises(ValueError, match=name):
        load_teacher(str(tmp_path / "run"), MODEL, SIDE, CLASSES, IMAGENET_NORMALISATION)


def test_a_file_without_a_classifier(tmp_path) -> None:
    save_file({"scale": torch.ones(3)}, tmp_path / "scale.safetensors")
    with pytest.raises(ValueError, match="holds no classifier: none of its 1 tensors is a matrix"):
        load_teacher(str(tmp_path / "scale.safetensors"), MODEL, SIDE, CLASSES, IMAGENET_NORMALISATION)


@pytest.mark.parametrize("missing", ["summary.json", "config.json"])
def test_an_unfinished_run_is_no_teacher(tmp_path, missing: str) -> None:
    write_run(tmp_path / "run", average_is_better=False)
    (tmp_path / "run" / missing).unlink()
    with pytest.raises(ValueError, match=f"is no finished run \\({missing} is missing\\)"):
        load_teacher(str(tmp_path / "run"), MODEL, SIDE, CLASSES, IMAGENET_NORMALISATION)


def test_off_line_the_error_names_the_file_and_where_to_put_it(monkeypatch) -> None:
    # What huggingface_hub raises without a network, wherever this test runs.
    from huggingface_hub.errors import LocalEntryNotFoundError

    def no_network(*_args, **_kwargs):
        raise LocalEntryNotFoundError("cannot reach the hub")

    monkeypatch.setattr("timm.models._builder.load_pretrained", no_network)
    with pytest.raises(ValueError) as caught:
        timm_model("regnety_160.deit_in1k", pretrained=True)
    for part in ("model.safetensors", "timm/regnety_160.deit_in1k", "--teacher PATH", "--teacher-model regnety_160"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "deit_tiny_distiled_patch16_224"}, "did you mean deit_tiny_distilled_patch16_224"),
        ({"model": "resnet18", "width": 64}, "--width only changes our own models"),
        ({"model": "resnet18.nothing"}, "timm cannot make resnet18.nothing"),
        ({"model": "test_vit", "weights": "weights"}, "unknown model 'weights' for --weights"),
        ({"model": "deit_tiny_patch16_224.fb_in1k"}, "type --model deit_tiny_patch16_224 --weights timm"),
        ({"model": "vgg11", "image_size": 16}, "vgg11 fails on an image of 16 x 16 pixels"),
        ({"model": "vgg11", "drop_path": 0.1}, "timm cannot make vgg11"),
    ],
)
def test_a_model_that_cannot_be_made(changes: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        of(CONFIG.replace(**changes))


def test_a_transformer_of_timm_is_built_for_the_image_size() -> None:
    model = of(CONFIG.replace(model="vit_tiny_patch16_224", image_size=96))
    assert model.pos_embed.shape[1] == 37


def test_the_heads_of_any_timm_model_start_anew_for_other_classes() -> None:
    source, model = (timm.create_model("levit_128s", num_classes=classes) for classes in (7, 4))
    notes = load_pretrained(model, source.state_dict())
    assert [note.split()[0] for note in notes] == ["head.linear", "head_dist.linear"]


def test_starting_weights_with_other_classes(lite0_weights) -> None:
    config = CONFIG.replace(model="tf_efficientnet_lite0", weights="deit_fast.teacher:efficientnet_lite0_weights")
    model = of(config)
    assert model.classifier.out_features == 4
    assert torch.equal(model.conv_stem.weight, lite0_weights["conv_stem.weight"])
    assert json.dumps(config.identity())  # the configuration with such a spec is JSON
