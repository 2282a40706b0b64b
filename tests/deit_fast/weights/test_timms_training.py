"""Checkpoints of timm's train.py: its average, its architecture, its images and its order of the classes."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch import nn

from deit_fast import load, load_pretrained, read_weights
from deit_fast.config import Config
from deit_fast.data import open_dataset
from deit_fast.model import IMAGENET_NORMALISATION
from deit_fast.teacher.load import load_teacher
from deit_fast.tools.evaluate.__main__ import main as evaluate
from deit_fast.weights.trained import classifier
from tests.deit_fast.conftest import write_images
from tests.deit_fast.weights.test_grammar import reference, write_timms_training

FOLDERS = {"numbers": ["1", "2", "10"], "case": ["Apple", "banana", "Cherry"]}


def same(weights: dict, model: nn.Module) -> bool:
    theirs = model.state_dict()
    return weights.keys() == theirs.keys() and all(torch.equal(weights[key], theirs[key]) for key in theirs)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    write_timms_training(tmp_path / "output", reference(3))
    return tmp_path / "output"


@pytest.mark.parametrize("name", ["model_best", "checkpoint-0", "last"])
def test_the_weights_are_those_that_timm_loads(output: Path, name: str) -> None:
    file = output / f"{name}.pth.tar"
    theirs = timm.create_model("test_vit", num_classes=3)
    timm.models.load_checkpoint(theirs, str(file))
    assert same(read_weights(file), theirs) and same(read_weights(file), reference(3))
    trained = load(file)
    assert same(trained.model.state_dict(), theirs)
    assert trained.source == f"{file}, timm's test_vit, moving average"
    assert load_pretrained(theirs, file) == []


def test_without_an_average_they_are_the_last_ones(output: Path, tmp_path: Path) -> None:
    content = torch.load(output / "last.pth.tar", weights_only=False)
    torch.save({key: value for key, value in content.items() if key != "state_dict_ema"}, tmp_path / "a.pth.tar")
    trained = load(tmp_path / "a.pth.tar")
    assert trained.source.endswith("timm's test_vit")
    assert not same(trained.model.state_dict(), reference(3))


def test_a_checkpoint_of_the_official_code_stays_what_its_own_resume_and_finetune_read(tmp_path: Path) -> None:
    torch.manual_seed(5)
    average = timm.create_model("test_vit", num_classes=3)
    torch.save({"model": reference(3).state_dict(), "model_ema": average.state_dict()}, tmp_path / "checkpoint.pth")
    assert same(read_weights(tmp_path / "checkpoint.pth"), reference(3))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_the_prefixes_of_wrapped_models_are_taken_off(prefix: str) -> None:
    weights = reference(3).state_dict()
    assert same(read_weights({"state_dict": {prefix + key: value for key, value in weights.items()}}), reference(3))


def test_images_are_seen_as_the_arguments_say(tmp_path: Path) -> None:
    arguments = {"mean": [0.5], "std": [0.25], "crop_pct": 0.8, "interpolation": "bilinear", "img_size": 96}
    torch.manual_seed(0)
    theirs = timm.create_model("test_vit", num_classes=3, global_pool="avg").eval()
    write_timms_training(tmp_path / "output", theirs, gp="avg", **arguments)
    file = tmp_path / "output" / "last.pth.tar"
    trained = load(file)
    policy = trained.policy
    assert (policy.mean, policy.std) == ((0.5,) * 3, (0.25,) * 3)
    assert (policy.size, policy.crop_ratio, policy.interpolation) == (96, 0.8, "bilinear")
    images = torch.randn(2, 3, 96, 96)
    assert torch.equal(trained.model(images), theirs(images)), "a model that sees any size keeps its own embeddings"
    teacher = load_teacher(Config(data="x", image_size=96), str(file), ["a", "b", "c"], IMAGENET_NORMALISATION)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in IMAGENET_NORMALISATION)
    pixels = torch.rand(2, 3, 96, 96)
    seen = teacher((pixels - mean) / std)
    torch.testing.assert_close(seen, teacher.model((pixels - 0.5) / 0.25), rtol=1e-4, atol=1e-5)


def test_a_deit_is_one_of_ours(tmp_path: Path) -> None:
    name = "deit_tiny_distilled_patch16_224"
    theirs = timm.create_model(name, num_classes=3).eval()
    torch.save({"arch": name, "state_dict": theirs.state_dict()}, tmp_path / "checkpoint.pth.tar")
    trained = load(tmp_path / "checkpoint.pth.tar")
    assert trained.model.config.distilled and trained.policy.crop_ratio == 0.9
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(trained.model(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_a_sentence(output: Path, tmp_path: Path) -> None:
    file = output / "last.pth.tar"
    for options in ({"architecture": "resnet18"}, {"heads": 2}):
        with pytest.raises(ValueError, match="is a test_vit of timm: leave out --architecture and --heads"):
            load(file, **options)
    assert load(file, architecture="test_vit").source.endswith("moving average")
    with pytest.raises(ValueError, match=r"do not fit .*; they are of test_vit: type --model test_vit$"):
        classifier(Config(data="x", model="test_resnet", image_size=160, weights=str(file)), 3)
    with pytest.raises(ValueError, match="knows 3 classes, the data has 4"):
        load_teacher(Config(data="x", image_size=160), str(file), list("abcd"), IMAGENET_NORMALISATION)
    with pytest.raises(ValueError, match=r"is not a weights file, whose name ends in .*\.pth\.tar: type one"):
        load(output / "args.yaml")
    with pytest.raises(ValueError, match=r"there is no file or folder nowhere\.pth\.tar"):
        load("nowhere.pth.tar")
    with pytest.raises(ValueError, match=r"holds no model: .* type the weights file itself"):
        load(output)
    with pytest.raises(ValueError, match=r"holds no model: .* type the weights file itself"):
        classifier(Config(data="x", model="test_vit", image_size=160, weights=str(output)), 3)


def test_an_architecture_that_timm_does_not_know_is_asked_for(tmp_path: Path) -> None:
    torch.save({"arch": "my_net", "state_dict": reference(3).state_dict()}, tmp_path / "model_best.pth.tar")
    assert same(load(tmp_path / "model_best.pth.tar", architecture="test_vit").model.state_dict(), reference(3))
    resnet = timm.create_model("test_resnet", num_classes=3).state_dict()
    torch.save({"arch": "my_net", "state_dict": resnet}, tmp_path / "model_best.pth.tar")
    with pytest.raises(ValueError, match="type --architecture NAME"):
        load(tmp_path / "model_best.pth.tar")


class Code:
    """Pickled, it writes a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_no_pickled_code_is_run(output: Path, tmp_path: Path) -> None:
    content = torch.load(output / "last.pth.tar", weights_only=False)
    content["args"].crash = Code(tmp_path / "it ran")
    torch.save(content, tmp_path / "bad.pth.tar")
    for use in (load, read_weights):
        with pytest.raises(ValueError, match="which could run any code, so it was not loaded"):
            use(tmp_path / "bad.pth.tar")
    assert not (tmp_path / "it ran").exists()


def test_the_arguments_of_a_checkpoint_load_no_other_file(output: Path, tmp_path: Path) -> None:
    """Older versions of timm unpickle what `checkpoint_path` names."""
    content = torch.load(output / "last.pth.tar", weights_only=False)
    content["args"].model_kwargs = {**(content["args"].model_kwargs or {}), "checkpoint_path": str(tmp_path / "no.pth")}
    torch.save(content, tmp_path / "other.pth.tar")
    expected = load(output / "last.pth.tar").model.state_dict()
    torch.testing.assert_close(load(tmp_path / "other.pth.tar").model.state_dict(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [{"model_kwargs": 5}, {"input_size": 3}])
def test_arguments_that_timm_would_not_write_are_a_sentence(output: Path, tmp_path: Path, wrong: dict) -> None:
    content = torch.load(output / "last.pth.tar", weights_only=False)
    vars(content["args"]).update(wrong)
    torch.save(content, tmp_path / "odd.pth.tar")
    with pytest.raises(ValueError, match=r"are not those of timm's train\.py"):
        load(tmp_path / "odd.pth.tar")


# The order of the classes


@pytest.fixture(params=FOLDERS)
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A data set whose classes timm sorts otherwise than we."""
    root = write_images(tmp_path / "data")
    for number, name in enumerate(FOLDERS[request.param]):
        for split in ("train", "val"):
            (root / split / f"class{number}").rename(root / split / name)
    return root


def teacher(file: Path, data: Path) -> nn.Module:
    config = Config(data=str(data), image_size=160)
    return load_teacher(config, str(file), open_dataset(str(data))[0].classes, IMAGENET_NORMALISATION)


def test_a_teacher_whose_order_is_timms_is_refused_where_that_is_another(output: Path, data: Path) -> None:
    ours, theirs = open_dataset(str(data))[0].classes, [*ReaderImageFolder(str(data / "train")).class_to_idx]
    first = next(label for label in range(3) if ours[label] != theirs[label])
    says = f"its class {first} is {theirs[first]}, the data's is {ours[first]}: train it with the --class-map of docs/"
    with pytest.raises(ValueError, match=f"by timm, which sorts class folders by number and without case: {says}"):
        teacher(output / "last.pth.tar", data)


def test_a_class_map_decides_where_it_can_be_read(tmp_path: Path, data: Path) -> None:
    ours = open_dataset(str(data))[0].classes
    (data / "train" / "fits.txt").write_text("".join(f"{name}\n" for name in ours))
    (tmp_path / "reversed.txt").write_text("\n".join(reversed(ours)))
    files = {}
    for name in ("fits.txt", str(tmp_path / "reversed.txt"), "gone.txt"):
        files[name] = tmp_path / Path(name).stem
        write_timms_training(files[name], reference(3), class_map=name, data_dir=str(data))
        files[name] /= "last.pth.tar"
    fits, other, gone = files.values()
    assert load(fits).classes == ours
    assert same(teacher(fits, data).model.state_dict(), reference(3))
    with pytest.raises(ValueError, match=f"its class 0 is {ours[2]}, the data's is {ours[0]}: fine-tune one"):
        teacher(other, data)
    assert teacher(gone, data), "its order cannot be known"


def test_the_order_of_another_kind_of_data_set_is_not_known(tmp_path: Path, data: Path) -> None:
    write_timms_training(tmp_path / "output", reference(3), dataset="hfds/owner/flowers")
    assert teacher(tmp_path / "output" / "last.pth.tar", data)


def test_an_evaluation_counts_as_timm_counts(output: Path, data: Path, tmp_path: Path) -> None:
    """The loss depends on which label is whose."""
    file = tmp_path / "scores.json"
    assert evaluate([str(output / "last.pth.tar"), "--data", str(data), "--threads", "1", "--json", str(file)]) == 0
    result = json.loads(file.read_text())["data"][0]
    reader = ReaderImageFolder(str(data / "val"))
    assert result["per_class"]["classes"] == [*reader.class_to_idx]
    model = reference(3)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images = torch.stack([transform(Image.open(path)) for path, _ in reader.samples])
    loss = nn.functional.cross_entropy(model(images), torch.tensor([label for _, label in reader.samples]))
    assert result["scores"]["model"]["cls"]["loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_models_of_two_orders_are_not_evaluated_together(output: Path, data: Path, tmp_path: Path, capsys) -> None:
    torch.save(reference(3).state_dict(), tmp_path / "ours.pth")
    command = [str(output / "last.pth.tar"), str(tmp_path / "ours.pth"), "--architecture", "test_vit"]
    assert evaluate([*command, "--data", str(data), "--crop-ratio", "official"]) == 2
    assert "trained by timm, which sorts class folders by number and without case" in capsys.readouterr().err
