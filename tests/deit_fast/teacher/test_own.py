"""The recipe `own`: what it chooses, what goes over it, and what a begun run keeps."""

import json
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from deit_fast.config import Config
from deit_fast.data.sources.open import open_dataset
from deit_fast.files import read_json
from deit_fast.names import flag
from deit_fast.recipes.named import parse, recipe
from deit_fast.teacher import own
from deit_fast.teacher.load import recipe_config
from deit_fast.teacher.own import AtHand, Folder, Own, choose, default_folder, hub_answers, look_at
from deit_fast.train.__main__ import main

PHOTOS = Folder(images=160, classes=4, side=300, grey=False)
SYMBOLS = Folder(images=1000, classes=10, side=28, grey=True)
NOTHING = AtHand(gpu=False, hub=False, lite0=False)
TINY, SMALL = "deit_tiny_distilled_patch16_224", "deit_small_distilled_patch16_224"


def chosen(folder: Folder, at_hand: AtHand = NOTHING, **typed: object) -> dict[str, object]:
    """The fields that are chosen beside those that are typed."""
    decisions = choose(folder, at_hand, recipe("own").replace(data="x", **typed), typed)
    return {name: value for decision in decisions for name, value in decision.fields.items()}


@pytest.mark.parametrize(
    ("folder", "at_hand", "expected"),
    [
        (PHOTOS, NOTHING, {"model": TINY, "width": 128, "image_size": 96, "teacher": "recipe:own-teacher-scratch"}),
        (PHOTOS, AtHand(False, False, True), {"width": 128, "teacher": "recipe:own-teacher-lite0"}),
        (PHOTOS, AtHand(False, True, True), {"model": TINY, "weights": "timm", "teacher": "recipe:own-teacher-light"}),
        (PHOTOS, AtHand(True, True, True), {"model": SMALL, "width": 0, "teacher": "recipe:own-teacher"}),
        (SYMBOLS, AtHand(True, True, True), {"image_size": 28, "patch_size": 14, "flip": 0.0, "in_memory": True}),
        (SYMBOLS._replace(grey=False, side=33), NOTHING, {"image_size": 32, "patch_size": 8}),
    ],
)
def test_model_size_and_teacher_follow_from_the_images_and_what_is_at_hand(
    folder: Folder, at_hand: AtHand, expected: dict
) -> None:
    fields = chosen(folder, at_hand)
    assert expected.items() <= fields.items()
    assert ("flip" in fields) == (folder.side <= own.SMALL and folder.grey)


@pytest.mark.parametrize("images", [1, 2, 7, 8, 40, 160, 1000, 5000, 60_000])
@pytest.mark.parametrize("side", [8, 28, 50, 72, 73, 500])
def test_what_is_chosen_is_a_sound_configuration_of_any_folder(images: int, side: int) -> None:
    for at_hand in (NOTHING, AtHand(True, True, False)):
        fields = chosen(Folder(images, 5, side, True), at_hand)
        config = recipe("own").replace(data="x", **fields)
        config.check()
        assert config.optim.batch_size <= images
        assert config.data.image_size % (config.model.patch_size or 16) == 0
        teacher = recipe_config(config)
        assert teacher is not None and 1 <= teacher.optim.epochs <= config.optim.epochs
        teacher.check()


def test_what_is_typed_decides_what_follows_from_it() -> None:
    assert "teacher" not in chosen(PHOTOS, teacher="runs/other")
    alone = chosen(PHOTOS, distill="none")
    assert alone["model"] == "deit_tiny_patch16_224" and alone["teacher"] == ""
    assert chosen(PHOTOS, epochs=1)["warmup_epochs"] == 0.1
    named = chosen(PHOTOS, AtHand(True, True, True), model="deit_base_distilled_patch16_224")
    assert (named["width"], named["image_size"], "weights" in named) == (0, 96, False)
    file = chosen(PHOTOS, weights="deit.pth", model=SMALL)
    assert (file["image_size"], file["lr"], file["depth"]) == (224, 5e-5, 0)


@pytest.fixture
def flowers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve training and four validation images of two classes, in the current folder; the hub does not answer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own, "hub_answers", lambda: False)
    return write_images(Path("flowers"), train=6, val=2)


def write_images(root: Path, classes: int = 2, side: int = 20, **counts: int) -> Path:
    """Noise whose mean differs by class."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 128, (side, side, 3)) + 127 * label // max(1, classes - 1)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def fitted(*typed: str) -> Config:
    return parse(["--data", "flowers", *typed], "", fit=Own())


def test_a_folder_without_a_recipe_is_own_and_its_run_has_its_name(flowers: Path) -> None:
    config = fitted()
    assert (config.recipe, config.run.out, config.optim.batch_size) == ("own", "runs/flowers", 8)
    assert config.data.image_size == 20 and config.data.flip == 0.5
    assert str(recipe_config(config).run_folder()) == "runs/flowers-teacher"


@pytest.mark.parametrize(
    "typed", [("--flip", "0.25"), ("--flip=0.25",), ("--no-in-memory",), ("--image_size", "16", "--patch_size=4")]
)
def test_a_typed_flag_goes_over_what_fits(flowers: Path, typed: tuple[str, ...]) -> None:
    config, words = fitted(*typed), [word.partition("=")[0].replace("_", "-") for word in typed]
    plain = parse(["--recipe", "own", "--data", "flowers", *typed], "").flat()
    for name, value in plain.items():
        if {flag(name), flag(f"no_{name}")} & set(words):
            assert config.flat()[name] == value
    deciding = "--no-in-memory" not in typed  # that moves no weight
    assert config.run.out.startswith("runs/flowers-") == deciding
    assert fitted(*typed).run.out == config.run.out


def test_a_begun_run_keeps_its_choices(flowers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = fitted()
    Path(begun.run.out).mkdir(parents=True)
    (Path(begun.run.out) / "config.json").write_text(json.dumps(begun.flat()))
    monkeypatch.setattr(own, "SMALL", 10)
    monkeypatch.setattr(own, "hub_answers", lambda: True)
    assert fitted() == begun
    assert fitted("--dry-run", "--log-every", "7") == begun.replace(dry_run=True, log_every=7)
    anew = fitted("--fresh")
    assert anew.model.weights == "timm" and anew.run.out == begun.run.out


def test_data_as_large_as_imagenet_has_the_recipe_deit(flowers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "LARGE", 12)
    config = fitted("--epochs", "3")
    assert config == parse(["--recipe", "deit", "--data", "flowers", "--epochs", "3"], "")
    assert config.optim.warmup_epochs < 3 and config.run.out == ""


def test_other_folders_of_one_name_and_other_flags() -> None:
    config = recipe("own").replace(data="/a/flowers/", epochs=3)
    assert default_folder(config, ()) == Path("runs/flowers")
    assert default_folder(config, ("epochs",)) != default_folder(config.replace(epochs=4), ("epochs",))
    assert default_folder(config.replace(data="/a/rows?label=x"), ()) == Path("runs/rows")


def test_one_class_is_a_sentence(flowers: Path, capsys: pytest.CaptureFixture) -> None:
    for split in ("train", "val"):
        (flowers / split / "class1").rename(f"{split}-elsewhere")
    assert main(["--data", "flowers"]) == 2
    assert "has one class, class0, so there is nothing to tell apart" in capsys.readouterr().err


def test_colours_and_sizes_are_seen_and_broken_files_passed_by(flowers: Path) -> None:
    broken = sorted(flowers.rglob("train/*/*.png"))[0]
    broken.write_bytes(b"no image")
    assert look_at(open_dataset("flowers")[0]) == Folder(12, 2, 20, False)
    for path in flowers.rglob("train/*/*.png"):
        if path != broken:
            Image.open(path).convert("L").save(path)
    assert look_at(open_dataset("flowers")[0]).grey
    for path in flowers.rglob("train/*/*.png"):
        path.write_bytes(b"no image")
    assert look_at(open_dataset("flowers")[0]) == Folder(12, 2, own.SMALL + 1, False)


@pytest.mark.parametrize(
    ("classes", "train", "val"), [(2, 3, 1), (2, 1, 1), (2000, 1, 0)], ids=["three", "one each", "2,000 classes"]
)
def test_small_and_many_classes_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, classes: int, train: int, val: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own, "hub_answers", lambda: False)
    root = write_images(Path("few"), classes, side=12, train=train, val=val)
    if not val:  # a class may be missing there
        (root / "val" / "class0" / "0.png").write_bytes((root / "train" / "class0" / "0.png").read_bytes())
    assert main(["--data", "few", "--epochs", "1", "--distill", "none", "--no-report"]) == 0
    printed = capsys.readouterr().out
    assert "what fits the images of few" in printed and "--distill none" in printed
    summary = next(Path("runs").glob("few-*/summary.json"))
    assert read_json(summary)["student"]["cls"]["n"] == max(1, classes * val)


def test_the_hub_is_asked_for_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(error: Exception):
        def urlopen(*_: object, timeout: float):
            assert timeout <= 5
            raise error

        monkeypatch.setattr(own.urllib.request, "urlopen", urlopen)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    raises(urllib.error.URLError("no network"))
    assert not hub_answers()
    raises(TimeoutError())
    assert not hub_answers()
    raises(urllib.error.HTTPError("", 405, "", {}, None))
    assert hub_answers()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub_answers()


@pytest.mark.slow
def test_one_command_trains_a_teacher_and_its_student_on_160_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's command; the student is better than guessing by more than four standard deviations."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own, "hub_answers", lambda: False)
    for images, split, count in zip(open_dataset("photos"), ("train", "val"), (30, 10), strict=True):
        for label in range(4):
            folder = Path("flowers", split, images.classes[label])
            folder.mkdir(parents=True)
            for index in np.flatnonzero(images.labels == label)[:count]:
                (folder / f"{index}.jpg").write_bytes(images.read(index))
    assert main(["--data", "flowers"]) == 0
    scores = read_json(Path("runs/flowers/summary.json"))
    assert scores["student"]["fused"]["n"] == 40
    assert scores["student"]["fused"]["top1"] > 25 + 4 * 100 * (0.25 * 0.75 / 40) ** 0.5
    assert scores["teacher"]["top1"] >= 80
    assert Path("runs/flowers-teacher/summary.json").exists() and Path("runs/flowers/report.html").exists()
