"""Files and class folders whose names are not UTF-8, as old archives hold them: every command reads and names them."""

import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from deit_fast import load
from deit_fast.config import Config
from deit_fast.data.sources.open import open_dataset
from deit_fast.files import shown
from deit_fast.tools.data.__main__ import main as data
from deit_fast.tools.evaluate.__main__ import main as evaluate
from deit_fast.tools.export.__main__ import main as export
from deit_fast.tools.predict import main as predict
from deit_fast.train.__main__ import main as train
from tests.deit_fast.command import command_line
from tests.deit_fast.conftest import tiny_config, write_images

CAFE, FULL = os.fsdecode(b"caf\xe9"), os.fsdecode(b"\xff.png")
CLASSES = [r"caf\xe9", "class1", "class2"]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in a folder of such a name, with such a class, such an image, and one that is broken."""
    root = write_images(tmp_path_factory.mktemp("old") / os.fsdecode(b"fl\xf6te"))
    for split in ("train", "val"):
        (root / split / "class0").rename(root / split / CAFE)
        (root / split / CAFE / "0.png").rename(root / split / CAFE / FULL)
    (root / "train" / CAFE / f"bad{FULL}").write_bytes(b"<html>")
    (root / "train" / CAFE / f"notes{FULL}.txt").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def run(old: Path, teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = tiny_config(old, tmp_path_factory.mktemp("runs") / "run").replace(batch_size=25)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(teachers)
        assert train(command_line(config)) == 0
    return config


def test_a_name_is_shown_with_its_bytes() -> None:
    assert shown(CAFE) == r"caf\xe9"
    assert shown("café/Apfel") == "café/Apfel"


def test_check_names_what_is_broken_and_left_out(old: Path, capsys) -> None:
    assert data(["check", str(old), "--threads", "1"]) == 1
    said = capsys.readouterr().out.splitlines()
    folder = shown(str(old)) + r"/train/caf\xe9"
    assert rf"broken: {folder}/bad\xff.png: it is not an image of a format" in said[0]
    assert rf"left out: {folder}/notes\xff.png.txt: .txt is no suffix of an image" in said
    assert said[-1] == "40 images: 1 broken, 0 odd, 0 groups of duplicates, 1 left out"


def test_a_run_trains_on_them_and_lists_the_broken_one(old: Path, run: Config) -> None:
    folder = Path(run.run.out)
    assert json.loads((folder / "data.json").read_text())["classes"] == CLASSES
    (bad,) = json.loads((folder / "summary.json").read_text())["bad_images"]
    assert bad == shown(str(old)) + r"/train/caf\xe9/bad\xff.png"
    assert bad in (folder / "logs" / "rank_0.log").read_text()


def test_a_run_is_evaluated_on_them(old: Path, run: Config, tmp_path: Path, monkeypatch, teachers: Path) -> None:
    monkeypatch.syspath_prepend(teachers)
    assert evaluate([run.run.out, "--json", str(tmp_path / "a.json"), "--confusion", str(tmp_path / "a.png")]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["data"][0]["per_class"]["classes"] == CLASSES


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_predictions_go_to_any_standard_output(old: Path, run: Config, tmp_path: Path, monkeypatch, encoding) -> None:
    image = (old / "train" / CAFE / FULL).read_bytes()
    for name in ("café.png", CAFE + FULL):
        (tmp_path / name).write_bytes(image)
    (tmp_path / f"bad{FULL}").write_bytes(b"<html>")

    def printed(*arguments: str) -> str:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", stream)
            assert predict([str(tmp_path), "--model", run.run.out, *arguments]) == 2
        stream.flush()
        return stream.buffer.getvalue().decode(encoding)

    answers = [json.loads(line) for line in printed("--json").splitlines()]
    assert sorted(answer["path"] for answer in answers) == sorted(map(str, tmp_path.iterdir()))
    assert r"caf\xe9\xff.png" in printed()


def test_they_are_packed_drawn_and_exported(old: Path, run: Config, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "good" / split).mkdir(parents=True)
        for folder in (old / split).iterdir():
            (tmp_path / "good" / split / folder.name).symlink_to(folder)
    (old / "train" / CAFE / f"bad{FULL}").write_bytes((old / "train" / "class1" / "0.png").read_bytes())
    assert data(["pack", str(tmp_path / "good"), str(tmp_path / "packed")]) == 0
    packed, _ = open_dataset(str(tmp_path / "packed"))
    source, _ = open_dataset(str(tmp_path / "good"))
    assert packed.classes == source.classes == CLASSES
    assert [packed.read(index) for index in range(25)] == [source.read(index) for index in range(25)]
    assert data(["preview", "--data", str(old), "--out", str(tmp_path / "preview.png")]) == 0
    assert Image.open(tmp_path / "preview.png").size
    assert export([run.run.out, "--to", "timm", "--out", str(tmp_path / "timm")]) == 0
    assert load(tmp_path / "timm").classes == CLASSES


def test_what_safetensors_cannot_write_is_refused_before_the_work(old: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / CAFE
    assert train(command_line(tiny_config(old, out))) == 2
    said = capsys.readouterr().err
    assert r"caf\xe9 cannot be written (safetensors writes to no path that is not UTF-8): type another --out" in said
    assert not out.exists()
