"""What evaluation does to an image file travels with the model: every field of Config, from the run to its users."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import Tensor

from deit_fast import load
from deit_fast.config import Config
from deit_fast.data.training import TrainingData
from deit_fast.files import write_json
from deit_fast.ranks.group import Ranks
from deit_fast.tools.evaluate import results
from deit_fast.tools.evaluate.models import open_models
from deit_fast.tools.export.formats import export
from deit_fast.tools.predict import main as predict
from deit_fast.train import train
from deit_fast.weights.build import normalisation
from deit_fast.weights.trained import classifier
from tests.deit_fast.test_config import MEANING, TYPES, changed

ALONE = Ranks(0, 1, torch.device("cpu"))
# Other values of texts, and of numbers that have to fit the model.
OTHER = {
    "image_size": 24, "patch_size": 4, "width": 64, "heads": 4, "order": "official", "recipe": "demo", "out": "out",
    "rand_augment": "rand-m9-mstd0.5-inc1", "teacher": "recipe:digits-teacher", "teacher_model": "resnet50",
    "teacher_cache": "cache", "class_weights": "balanced",
}  # fmt: skip


def photographs(root: Path, seed: int) -> Path:
    """JPEG files of two classes and of many sizes, each with an EXIF orientation."""
    generator = np.random.default_rng(seed)
    exif = Image.Exif()
    for number in range(16):
        file = root / ("val" if number % 2 else "train") / f"class{number // 2 % 2}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        height, width = generator.integers(20, 50, 2)
        exif[0x0112] = number // 2 % 8 + 1
        Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).save(file, exif=exif)
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("photographs")
    photographs(folder / "other", seed=1)
    return Config(
        data=str(photographs(folder / "data", seed=0)), image_size=16, model="deit_tiny_patch16_224", patch_size=8,
        width=32, depth=1, heads=2, batch_size=4, threads=1, distill="soft", teacher="teacher.pth", teacher_top_k=3,
        alpha=0.5, tau=3.0, kl_normalizer="batch",
    )  # fmt: skip


def another(base: Config, name: str, folder: Path) -> Config:
    if name == "data":
        return base.replace(data=str(Path(base.data.data).with_name("other")))
    if name == "model":  # of timm, with its own mean and std
        return base.replace(model="test_efficientnet_gn", patch_size=0, width=0, depth=0, heads=0)
    if name == "weights":
        torch.manual_seed(5)
        save_file(classifier(base.model, base.data.image_size, 2).state_dict(), folder / "start.safetensors")
        return base.replace(weights=str(folder / "start.safetensors"))
    if name in OTHER:
        assert base.flat()[name] != OTHER[name]
        return base.replace(**{name: OTHER[name]})
    assert TYPES[name] is not str, f"{name} is a text: give another one in OTHER"
    return changed(base, name)


def saved(config: Config, run: Path) -> Path:
    """A checkpoint of a run that has not learned anything; returns its weights file."""
    data = TrainingData.open(config.data, config.optim, ALONE)
    model = classifier(config.model, config.data.image_size, len(data.train_set.classes))
    (run / "checkpoints").mkdir(parents=True)
    write_json(run / "config.json", config.flat())
    write_json(run / "data.json", data.identity)
    save_file(model.state_dict(), run / "checkpoints" / "best_00000001.safetensors")
    return run / "checkpoints" / "best_00000001.safetensors"


def seen_by_the_run(config: Config) -> tuple[list[str], Tensor]:
    """The files of the validation images, and their pixels in the run's own evaluation."""
    data = TrainingData.open(config.data, config.optim, ALONE)
    validation = data.loaders(normalisation(classifier(config.model, config.data.image_size, 2)), ALONE).validation()
    paths = [data.val_set.path(index) for index in range(len(data.val_set))]
    return paths, torch.cat([batch.images for batch in validation])


def seen_by_evaluate(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    seen: list[Tensor] = []

    def watched(models, batches, *others):
        kept = []
        for batch in batches:
            seen.append(batch.images.clone())
            kept.append(batch)
        return scores(models, kept, *others)

    scores = results.predict
    with monkeypatch.context() as patch:
        patch.setattr(results, "predict", watched)
        results.evaluate_all(results.Settings(models=(str(weights),), teacher="-", threads=1))
    return torch.cat(seen)


@pytest.mark.parametrize("name", MEANING)
def test_evaluation_everywhere_sees_the_pixels_of_the_run(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A new field that changes pixels fails here until MEANING names it and `evaluate` and `load` go by it."""
    config = another(base, name, tmp_path)
    paths, expected = seen_by_the_run(config)
    usual = seen_by_the_run(base)[1]
    assert (expected.shape != usual.shape or not torch.equal(expected, usual)) == ("e" in MEANING[name])
    weights = saved(config, tmp_path / "run")
    trained = load(weights)
    assert torch.equal(trained.prepare([trained.read(path) for path in paths]), expected)
    assert torch.equal(seen_by_evaluate(weights, monkeypatch), expected)


@pytest.fixture(scope="module")
def turning(base: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run that turns images."""
    config = base.replace(
        exif_orientation=True, out=str(tmp_path_factory.mktemp("runs") / "turning"), epochs=2, warmup_epochs=1,
        precision="fp32", distill="none", teacher="", teacher_top_k=0, alpha=None, tau=None, kl_normalizer=None,
        ema_decay=0.0,
    )  # fmt: skip
    return train(config).run


def test_evaluate_gives_the_scores_of_a_run_that_turns_images(turning: Path) -> None:
    expected = load(turning).summary["student"]["cls"]
    found = results.evaluate_all(results.Settings(models=(str(turning),)))
    assert found["data"][0]["scores"]["model"]["cls"] == {**expected, "loss": pytest.approx(expected["loss"], rel=1e-6)}
    assert found["exif_orientation"] is True
    config = Config.from_json(turning / "config.json")
    stored = seen_by_the_run(config.replace(exif_orientation=False))[1]
    assert not torch.equal(stored, seen_by_the_run(config)[1]), "these images have to be turned"


def test_attention_is_drawn_over_the_image_as_it_was_seen(
    turning: Path, base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list = []
    monkeypatch.setattr("deit_fast.tools.predict.draw_attention", lambda trained, images, target: drawn.extend(images))
    folder = str(Path(base.data.data) / "val")
    assert predict([folder, "--model", str(turning), "--attention", str(tmp_path / "a.png")]) == 0
    for (caption, pixels), file in zip(drawn, sorted(Path(folder).rglob("*.jpg")), strict=True):
        assert caption.startswith(file.name)
        assert np.array_equal(pixels, ImageOps.exif_transpose(Image.open(file)))


def test_a_run_and_an_export_of_before_turn_nothing(turning: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(turning, tmp_path / "run"))
    exports = {to: tmp_path / to for to in ("timm", "hf")}
    for to, folder in exports.items():
        export(load(turning), to, folder)
    files = [run / "config.json", exports["timm"] / "config.json", exports["hf"] / "preprocessor_config.json"]
    for file in files:
        assert load(file.parent).preprocessing.exif_orientation
        fields = json.loads(file.read_text())
        del fields["exif_orientation"]
        file.write_text(json.dumps(fields))
        assert not load(file.parent).preprocessing.exif_orientation


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"exif_orientation": True}, "turned as their EXIF orientation says: evaluate them one by one$"),
        ({"interpolation": "bilinear"}, "bilinear: evaluate them one by one$"),
        ({"crop_ratio": 1.0}, "crop ratio 1, bicubic: evaluate them one by one, or give all the same --image-size and"),
    ],
)
def test_models_that_see_other_pixels_are_not_evaluated_together(
    base: Config, tmp_path: Path, changes: dict, advice: str
) -> None:
    first = load(saved(base, tmp_path / "run"))
    second = dataclasses.replace(first, preprocessing=dataclasses.replace(first.preprocessing, **changes))
    for number, trained in enumerate((first, second)):
        export(trained, "timm", tmp_path / str(number))
    with pytest.raises(ValueError, match=advice):
        open_models([str(tmp_path / "0"), str(tmp_path / "1")], "", 0, "")
