"""The table of docs/using-a-model.md, cell by cell: seven kinds of names, six uses, one model behind all of them.

The model is timm's small test_vit. Whatever names it, every use must find exactly its weights.
"""

import argparse
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

from deit_fast import create_model, load
from deit_fast.config import Config
from deit_fast.model import IMAGENET_NORMALISATION
from deit_fast.run import checkpoint
from deit_fast.teacher.load import load_teacher, own_view
from deit_fast.tools.evaluate.__main__ import main as evaluate
from deit_fast.tools.export.__main__ import main as export
from deit_fast.tools.export.formats import export as exported_to
from deit_fast.tools.predict import main as predict
from deit_fast.weights.huggingface import huggingface_config, to_huggingface
from deit_fast.weights.trained import classifier, resolve

ROOT = Path(__file__).parents[3]
CLASSES = ["class0", "class1", "class2"]  # of the fixture `images`
SYNSET = "n01443537"  # ImageNet's class 1
FUNCTIONS = """
import timm
from pathlib import Path
from safetensors.torch import load_file

FILE = Path(__file__).with_name("model.safetensors")

def model():
    model = timm.create_model("test_vit", num_classes=3)
    model.load_state_dict(load_file(FILE))
    return model

def weights():
    return load_file(FILE)

def path():
    return str(FILE)

def own():
    import torch
    from torch import nn
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
"""


def table() -> dict[str, dict[str, str]]:
    """Kind -> use -> cell."""
    page = (ROOT / "docs" / "using-a-model.md").read_text()
    first = next(part for part in page.split("\n\n") if part.startswith("|"))
    lines = re.findall(r"^\|(.*)\|$", first, flags=re.MULTILINE)
    (_, *uses), _, *rows = ([cell.strip() for cell in line.split("|")] for line in lines)
    return {kind: dict(zip((use.strip("`") for use in uses), cells, strict=True)) for kind, *cells in rows}


KINDS = {
    "run folder": ["run", "unfinished"],
    "file of its `checkpoints/`": ["step", "best"],
    "exported folder": ["timm", "local-dir"],
    "weights file": [".pth", ".pt", ".bin", ".safetensors"],
    "checkpoint of timm": ["model_best.pth.tar", "checkpoint-0.pth.tar", "renamed.pth"],
    "name": ["name.tag", "hf_hub"],
    "`module:function`": ["model", "weights", "path"],
}
USES = ("--weights", "--teacher", "evaluate", "predict", "export", "load")
CASES = [(kind, case, use) for kind, cases in KINDS.items() for case in cases for use in USES]


class World(NamedTuple):
    """The same weights under every name; those of a name have 1000 classes."""

    specs: dict[str, str]
    images: Path
    synset: Path

    def is_thousand(self, case: str) -> bool:
        return case in KINDS["name"]

    def data(self, case: str) -> Path:
        return self.synset if self.is_thousand(case) else self.images

    def classes(self, case: str) -> list[str]:
        return [f"n{label:08}" for label in range(1000)] if self.is_thousand(case) else CLASSES


def reference(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=classes).eval()


def write_timms_training(folder: Path, average: nn.Module, **arguments: object) -> None:
    """model_best.pth.tar, checkpoint-0.pth.tar and last.pth.tar of timm's own saver, and what else train.py leaves.

    `average` is the moving average; the last weights are others.
    """
    torch.manual_seed(1)
    last = timm.create_model("test_vit", num_classes=average.num_classes)
    given = {"model": "test_vit", "num_classes": average.num_classes, "dataset": "", "data_dir": "nowhere"}
    given |= {"train_split": "train", "class_map": "", "gp": None, "img_size": None, "input_size": None, "mean": None}
    given |= {"std": None, "crop_pct": None, "interpolation": "", "in_chans": None, "model_kwargs": {}, **arguments}
    folder.mkdir()
    (folder / "args.yaml").write_text("model: test_vit\n")
    saver = CheckpointSaver(
        last, torch.optim.SGD(last.parameters(), lr=0.1), argparse.Namespace(**given),
        model_ema=ModelEmaV3(average), checkpoint_dir=str(folder),
    )  # fmt: skip
    saver.save_checkpoint(0, metric=50.0)


def write_run(folder: Path, model: nn.Module, data: Path) -> None:
    config = Config(data=str(data), model="test_vit", image_size=160, out=str(folder), label_smoothing=0.0)
    folder.mkdir()
    checkpoint.write_json(folder / "config.json", config.flat())
    described = {"classes": CLASSES, "train": 24, "val": 15, "labels": "none"}
    checkpoint.write_json(folder / "data.json", described)
    scores = {"cls": {"top1": 50.0, "top5": 100.0, "loss": 1.0, "n": 15}}
    checkpoint.write_json(folder / "summary.json", {"teacher": None, "student": scores, "ema": None})
    tensors = checkpoint.tensors_of(model, None, torch.optim.AdamW(model.parameters()))
    checkpoint.save(folder, 1, tensors, {}, keep=1)


@pytest.fixture(scope="module")
def world(images: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    root, model = tmp_path_factory.mktemp("grammar"), reference(3)
    write_run(root / "run", model, images)
    (step,) = (root / "run" / "checkpoints").glob("*/model.safetensors")
    best = root / "run" / "checkpoints" / "best_00000001.safetensors"
    shutil.copy(step, best)
    shutil.copytree(root / "run", root / "unfinished")
    (root / "unfinished" / "summary.json").unlink()
    for suffix in (".pth", ".pt", ".bin"):
        torch.save({"model": model.state_dict()}, root / f"model{suffix}")
    save_file(model.state_dict(), root / "model.safetensors")
    write_timms_training(root / "output", model)
    shutil.copy(root / "output" / "last.pth.tar", root / "output" / "renamed.pth")
    (root / "my_models.py").write_text(FUNCTIONS)
    exported_to(load(root / "run"), "timm", root / "timm")
    (root / "photos" / SYNSET).mkdir(parents=True)
    Image.effect_mandelbrot((180, 170), (-2, -1, 1, 1), 30).convert("RGB").save(root / "photos" / SYNSET / "a.png")
    paths = {"run": "run", "unfinished": "unfinished", "step": step, "best": best, "timm": "timm"}
    paths |= {suffix: f"model{suffix}" for suffix in KINDS["weights file"]}
    paths |= {name: f"output/{name}" for name in KINDS["checkpoint of timm"]}
    specs = {name: str(root / path) for name, path in paths.items()}
    specs |= {"local-dir": f"local-dir:{root / 'timm'}", "name.tag": "test_vit.r160_in1k"}
    specs |= {"hf_hub": "hf_hub:timm/test_vit.r160_in1k"}
    specs |= {name: f"my_models:{name}" for name in ("model", "weights", "path", "own")}
    return World(specs, images, root / "photos")


@pytest.fixture(autouse=True)
def hub(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's fetching, from memory; and the module `my_models`."""

    from_disk = timm.models._builder.load_pretrained

    def fetch(model: nn.Module, *arguments: object, **options: object) -> None:
        if model.pretrained_cfg.get("source") == "local-dir":
            from_disk(model, *arguments, **options)
        else:
            model.load_state_dict(reference(model.num_classes).state_dict())

    cfg = timm.get_pretrained_cfg("test_vit.r160_in1k").to_dict()
    monkeypatch.setattr("timm.models._builder.load_pretrained", fetch)
    monkeypatch.setattr("timm.models._factory.load_model_config_from_hf", lambda *_, **__: (cfg, "test_vit", {}))
    monkeypatch.syspath_prepend(world.synset.parent)


def same(model: nn.Module, classes: int) -> bool:
    ours, theirs = model.state_dict(), reference(classes).state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def as_weights(world: World, case: str, told: bool, tmp_path: Path) -> None:
    config = Config(data="x", model="test_vit" if told else "test_resnet", image_size=160, weights=world.specs[case])
    torch.manual_seed(1)
    count = len(world.classes(case))
    assert same(classifier(config.model, config.data.image_size, count), count)


def as_teacher(world: World, case: str, told: bool, tmp_path: Path) -> None:
    classes, architecture = world.classes(case), "test_vit" if told else "regnety_160"
    teacher = load_teacher(world.specs[case], architecture, 160, classes, IMAGENET_NORMALISATION)
    assert same(teacher.model, len(classes))
    assert own_view(world.specs[case], teacher.model)[0] == 160


def as_load(world: World, case: str, told: bool, tmp_path: Path) -> None:
    trained = load(world.specs[case], **({"architecture": "test_vit"} if told else {}))
    assert same(trained.model, len(world.classes(case)))
    assert trained.policy.size == 160 and len(trained.classes) == len(world.classes(case))


def architecture(told: bool) -> list[str]:
    return ["--architecture", "test_vit"] if told else []


def as_evaluated(world: World, case: str, told: bool, tmp_path: Path) -> None:
    results = {}
    reference_file = tmp_path / "reference.pth"
    count = len(world.classes(case))
    torch.save(reference(count).state_dict(), reference_file)
    common = ["--data", str(world.data(case)), "--crop-ratio", "official", "--threads", "1"]
    for name, model in {"expected": [str(reference_file), *architecture(True)],
                        "got": [world.specs[case], *architecture(told)]}.items():  # fmt: skip
        assert evaluate([*model, *common, "--json", str(tmp_path / f"{name}.json")]) == 0
        results[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert results["got"]["data"][0]["scores"]["model"] == results["expected"]["data"][0]["scores"]["model"]


def as_predicted(world: World, case: str, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    image = str(next(world.synset.rglob("*.png")))
    capsys.readouterr()
    assert predict([image, "--model", world.specs[case], *architecture(told), "--json", "--top", "1"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["predictions"]
    trained = load(world.specs[case], **({"architecture": "test_vit"} if told else {}))
    prepared = trained.prepare([Image.open(image).convert("RGB")])
    logits = reference(len(world.classes(case)))(prepared).detach().softmax(-1)[0]
    assert answer["label"] == logits.argmax()
    assert answer["probability"] == pytest.approx(logits.max().item(), rel=1e-5)


def as_exported(world: World, case: str, told: bool, tmp_path: Path) -> None:
    assert export([world.specs[case], *architecture(told), "--to", "timm", "--out", str(tmp_path / "out")]) == 0
    assert same(load(tmp_path / "out").model, len(world.classes(case)))


@pytest.fixture
def uses(world: World, tmp_path: Path, capsys: pytest.CaptureFixture) -> dict[str, Callable[[str, bool], None]]:
    def predicted(*arguments: object) -> None:
        as_predicted(*arguments, capsys)

    functions = dict(zip(USES, (as_weights, as_teacher, as_evaluated, predicted, as_exported, as_load), strict=True))
    return {use: lambda case, told, f=f: f(world, case, told, tmp_path) for use, f in functions.items()}


def test_the_table_has_all_kinds_and_uses() -> None:
    assert list(table()) == list(KINDS)
    assert all(tuple(row) == USES for row in table().values())


@pytest.mark.parametrize(("kind", "case", "use"), CASES)
def test_a_cell_of_the_table(kind: str, case: str, use: str, uses, world: World) -> None:
    cell = table()[kind][use]
    if cell == "if finished" and case == "unfinished":
        with pytest.raises(ValueError, match=r"is no finished run \(summary.json is missing\): train it to its end"):
            uses[use](case, False)
        return
    assert cell in ("yes", "if finished") or cell.strip("`").startswith(("--", "architecture="))
    by_flag = cell not in ("yes", "if finished")
    # --weights never needs another flag than --model, which as_weights types.
    uses[use](case, by_flag or use == "--weights" or (kind == "`module:function`" and case != "model"))


@pytest.mark.parametrize("use", USES)
def test_a_weights_file_without_its_architecture_is_a_sentence(use: str, uses, capsys) -> None:
    """The flags of the table are needed: without them, there is something to type."""
    flag = table()["weights file"][use].strip("`=").removeprefix("--")
    advice = {"model": "do not fit the model", "teacher-model": "do not fit the model"}.get(flag, "--architecture NAME")
    try:
        uses[use](".safetensors", False)
    except ValueError as error:
        said = str(error)
    except AssertionError:  # a command's exit code
        said = capsys.readouterr().err
    assert advice in said


def test_a_spec_is_of_one_kind(world: World) -> None:
    words = ("run", "checkpoint", "exported", "file", "file", "name", "function")
    for kind, cases in zip(words, KINDS.values(), strict=True):
        assert {resolve(world.specs[case]).kind for case in cases} == {kind}


def test_a_spec_has_the_files_that_decide_its_weights(world: World) -> None:
    root = world.synset.parent
    (step,) = root.glob("run/checkpoints/step_*/model.safetensors")
    expected = {
        "run": [step], "step": [step], "timm": [root / "timm" / "model.safetensors"], ".pth": [root / "model.pth"],
        "name.tag": [], "model": [root / "my_models.py"],
    }  # fmt: skip
    assert {case: resolve(world.specs[case]).files() for case in expected} == expected
    assert resolve("no_such_package.module:build").files() == [], "its error comes when it is loaded"


def test_the_first_letters_of_a_model_bring_the_names_that_begin_so_ours_first() -> None:
    for typed, names in {"deit_tiny": "deit_tiny_patch16_224 or deit_tiny_dist", "regnety_16": "regnety_160"}.items():
        with pytest.raises(ValueError, match=f"unknown model '{typed}'.*: did you mean {names}"):
            resolve(typed)


def test_a_teacher_of_other_classes_is_refused_before_its_weights_are_fetched(monkeypatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("it was fetched"))
    with pytest.raises(
        ValueError, match=r"the teacher test_vit\.r160_in1k knows 1000 classes, the data has 3: fine-tune"
    ):
        load_teacher("test_vit.r160_in1k", "regnety_160", 160, CLASSES, IMAGENET_NORMALISATION)


def test_a_function_whose_images_are_not_square_is_a_sentence(world: World, tmp_path: Path, monkeypatch) -> None:
    code = "from deit_fast import create_model\n\ndef build():\n    return create_model('deit_tiny_patch16_224', "
    (tmp_path / "wide_model.py").write_text(code + "image_size=(32, 64), width=48, depth=1, heads=2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="wide_model:build sees images of 32 x 64 pixels: build it for square ones"):
        load("wide_model:build")


def test_a_model_of_the_users_own_goes_to_onnx_only(world: World, tmp_path: Path, capsys) -> None:
    assert export(["my_models:own", "--to", "timm", "--out", str(tmp_path / "timm")]) == 2
    assert "this is a Sequential: type --to onnx" in capsys.readouterr().err
    assert export(["my_models:own", "--to", "onnx", "--out", str(tmp_path / "onnx")]) == 0


def test_starting_weights_of_a_name_are_fitted_like_any_other(world: World) -> None:
    """Other classes start new heads; another size resizes the position embeddings."""
    config = Config(data="x", model="test_vit", image_size=96, weights="test_vit.r160_in1k")
    model, expected = classifier(config.model, config.data.image_size, 3), reference(1000).state_dict()
    assert model.head.out_features == 3 and model.pos_embed.shape != expected["pos_embed"].shape
    assert torch.equal(model.state_dict()["blocks.0.attn.qkv.weight"], expected["blocks.0.attn.qkv.weight"])


def test_any_kind_is_used_at_another_image_size(world: World) -> None:
    for case in ("run", "step", "timm", "name.tag", "model"):
        trained = load(world.specs[case], image_size=96)
        assert trained.policy.size == 96
        assert trained.model(torch.zeros(1, 3, 96, 96)).shape == (1, len(world.classes(case)))


@pytest.mark.parametrize("case", ["step", "timm"])
def test_a_teacher_of_other_classes_of_the_same_number_is_refused(case: str, world: World) -> None:
    with pytest.raises(ValueError, match="its class 2 is class2, the data's is other"):
        load_teacher(world.specs[case], "regnety_160", 160, ["class0", "class1", "other"], IMAGENET_NORMALISATION)


def test_a_checkpoint_of_an_unfinished_run_is_a_teacher(world: World) -> None:
    (file,) = Path(world.specs["unfinished"]).glob("checkpoints/*/model.safetensors")
    teacher = load_teacher(str(file), "regnety_160", 160, CLASSES, IMAGENET_NORMALISATION)
    assert same(teacher.model, 3)


def test_a_teacher_in_a_folder_of_hugging_face_sees_images_as_the_folder_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "width": 48, "depth": 1, "heads": 3, "classes": 3}
    model = create_model("deit_tiny_distilled_patch16_224", **sizes).eval()
    save_file(to_huggingface(model.state_dict()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(huggingface_config(model, CLASSES)))
    half = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(half))
    teacher = load_teacher(str(tmp_path), "regnety_160", 32, CLASSES, IMAGENET_NORMALISATION)
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in IMAGENET_NORMALISATION)
    torch.testing.assert_close(teacher((pixels - mean) / std), model((pixels - 0.5) / 0.25), rtol=1e-4, atol=1e-5)
    assert own_view(str(tmp_path), teacher.model)[0] == 32


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("my_models:modle", "my_models:modle: the module my_models has no function modle"),
        ("no_models:model", "the module no_models cannot be imported"),
        ("https://example.org/model.pth", "is an address: download the file, and type its path"),
        ("nowhere/model.pth", "there is no file or folder nowhere/model.pth: check the path"),
        ("local-dir:nowhere", "there is no file or folder nowhere: check the path"),
        ("test_vt", "unknown model 'test_vt', neither a path here nor a name: did you mean .*test_vit"),
    ],
)
def test_a_name_of_nothing_says_what_to_type(spec: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load(spec)
