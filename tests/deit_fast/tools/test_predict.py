"""`deit-fast predict`: answers for images and folders, as a table and as JSON; what is no image is named."""

import json
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from rich.console import Console

from deit_fast import load
from deit_fast.data import EvalLoader, open_evaluation
from deit_fast.tools import predict
from deit_fast.tools.predict import main


def lines(capsys: pytest.CaptureFixture) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_answers_are_those_of_the_evaluation(finished_run: Path, images: Path, capsys) -> None:
    assert main([str(images / "val"), "--model", str(finished_run), "--json", "--top", "2", "--batch-size", "4"]) == 0
    rows = lines(capsys)
    trained = load(finished_run)
    validation = open_evaluation(str(images), trained.classes)
    (batch,) = EvalLoader(validation, trained.policy, batch_size=len(validation))
    expected = trained.model(batch.images).softmax(-1)
    assert [row["path"] for row in rows] == [validation.path(index) for index in range(len(validation))]
    for row, probabilities in zip(rows, expected, strict=True):
        first, second = row["predictions"]
        assert first["label"] == probabilities.argmax() and first["class"] == f"class{first['label']}"
        assert first["probability"] == pytest.approx(probabilities.max().item(), abs=1e-6)
        assert first["probability"] >= second["probability"]


def test_a_table_names_the_classes(finished_run: Path, images: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(images)
    assert main(["val/class1/0.png", "--model", str(finished_run)]) == 0
    out, err = capsys.readouterr()
    assert all(name in out for name in ("val/class1/0.png", "class0", "class1", "class2", " %"))
    assert "at step 6" in err


def test_a_picture_of_where_both_tokens_look(finished_run: Path, images: Path, tmp_path: Path, capsys) -> None:
    target = tmp_path / "attention.png"
    arguments = [str(images / "val" / "class1"), "--model", str(finished_run), "--attention", str(target)]
    assert main(arguments) == 0
    with Image.open(target) as picture:
        width, height = picture.size
    assert width == pytest.approx(3 * 2.6 * 110, abs=8) and height == pytest.approx(5 * 2.8 * 110, abs=8)


def test_a_convnet_has_no_tokens_to_draw(images: Path, tmp_path: Path, capsys) -> None:
    torch.save(timm.create_model("test_efficientnet", num_classes=3).state_dict(), tmp_path / "net.pth")
    image = str(images / "val" / "class1" / "0.png")
    arguments = [image, "--model", str(tmp_path / "net.pth"), "--architecture", "test_efficientnet"]
    assert main([*arguments, "--attention", str(tmp_path / "a.png")]) == 2
    said = capsys.readouterr()
    assert "maps are drawn for a DeiT: EfficientNet has no class and distillation token" in said.err
    assert not said.out, "it is said before anything is predicted"
    assert not (tmp_path / "a.png").exists()


def test_files_that_are_no_images_are_named_and_the_others_answered(
    finished_run: Path, images: Path, tmp_path: Path, capsys
) -> None:
    good = tmp_path / "good.png"
    good.write_bytes((images / "val" / "class0" / "0.png").read_bytes())
    (tmp_path / "bad.jpg").write_text("<html>")
    assert main([str(tmp_path), "--model", str(finished_run), "--json"]) == 2
    out, err = capsys.readouterr()
    bad, answered = map(json.loads, out.splitlines())
    reason = bad["error"]
    assert reason.startswith("it is not an image of a format that is read here")
    assert bad == {"path": str(tmp_path / "bad.jpg"), "error": reason}
    assert answered["path"] == str(good)
    assert f"error: {tmp_path / 'bad.jpg'} holds no image: {reason}" in err


def test_a_folder_that_cannot_be_read_is_named_and_the_others_are_answered(
    finished_run: Path, images: Path, monkeypatch, capsys
) -> None:
    folder = images / "val" / "class0"

    def walk(path, onerror):
        onerror(PermissionError(13, "Permission denied", f"{path}/closed"))
        yield str(path), [], [file.name for file in folder.iterdir()]

    monkeypatch.setattr("os.walk", walk)
    assert main([str(folder), "--model", str(finished_run), "--json"]) == 2
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"] for row in rows if "error" in row] == [f"{folder}/closed"]
    assert "permission denied" in rows[0]["error"] and len(rows) == 1 + len(list(folder.iterdir()))


def test_markup_in_a_name_is_text() -> None:
    row = predict.Prediction("d[/x].png", [("[red]rose[/red]", 0, 1.0)])
    console = Console(width=80)
    with console.capture() as shown:
        console.print(predict.table([row]))
    assert "d[/x].png" in shown.get() and "[red]rose[/red]" in shown.get()


def test_what_is_left_out_of_a_folder_is_said(finished_run: Path, images: Path, tmp_path: Path, capsys) -> None:
    for name in ("a.png", "b.heic", "sub/c.txt", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((images / "val" / "class0" / "0.png").read_bytes())
    assert main([str(tmp_path), "--model", str(finished_run), "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert f"left out: 1 .heic, 1 .txt in {tmp_path}\n" in err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--top", "0"], "--top is 1 or more, got 0"),
        (["--device", "cuda:77"], "--device cuda:77 is not usable here"),
        (["--device", "quantum"], "--device quantum is not usable here"),
        (["--model", "deit_tinny_patch16_224"], "did you mean deit_tiny_patch16_224"),
        (["--model", "none/such"], "there is no file or folder none/such"),
        (["--attention", "nowhere/a.png"], "nowhere/a.png cannot be written (there is no folder"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(
    changes: list[str], says: str, finished_run: Path, images: Path, capsys
) -> None:
    image = str(images / "val" / "class0" / "0.png")
    assert main([image, "--model", str(finished_run), *changes]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.startswith("error: ") != captured.err.startswith("model: ")
    assert captured.out == ""


@pytest.mark.parametrize("name", ["-007.jpg", "-h.jpg", "--top.jpg", "-7.5.jpg"])
def test_an_image_whose_name_begins_with_a_dash(
    finished_run: Path, images: Path, tmp_path: Path, monkeypatch, name: str, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes((images / "val/class0/0.png").read_bytes())
    for arguments in ([name, "--top", "1"], ["--top", "1", name]):
        assert main(["--json", "--model", str(finished_run), *arguments]) == 0
        assert [row["path"] for row in lines(capsys)] == [f"./{name}"]


def test_what_is_missing_is_named_and_the_others_are_answered(
    finished_run: Path, images: Path, tmp_path: Path, capsys
) -> None:
    first, second = (str(images / f"val/class0/{number}.png") for number in (0, 1))
    missing, empty = str(tmp_path / "missing.jpg"), str(tmp_path / "empty")
    Path(empty).mkdir()
    assert main([first, missing, empty, second, "--model", str(finished_run), "--json"]) == 2
    out, err = capsys.readouterr()
    rows = {row["path"]: row for row in map(json.loads, out.splitlines())}
    assert rows.keys() == {first, missing, empty, second}
    assert all("predictions" in rows[path] for path in (first, second))
    assert rows[missing]["error"] == f"there is no image or folder {missing}: check the path"
    assert rows[empty]["error"].startswith(f"{empty} holds no image: files end in .jpg")
    for path in (missing, empty):
        assert f"error: {rows[path]['error']}" in err.splitlines()


def test_a_path_without_images_says_so_before_the_model_is_loaded(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path), "--model", "none/such"]) == 2
    assert "holds no image: files end in .jpg" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere.jpg"), "--model", "none/such"]) == 2
    assert "there is no image or folder" in capsys.readouterr().err


def test_a_bar_is_drawn_for_a_person_and_json_stays_clean(
    finished_run: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("deit_fast.progress.Console", partial(Console, force_terminal=True))
    assert main([str(images), "--model", str(finished_run), "--json", "--batch-size", "8"]) == 0
    out, err = capsys.readouterr()
    assert "predicting" in err and "39/39" in err
    assert len([json.loads(line) for line in out.splitlines()]) == 39


def test_an_image_that_the_crop_refuses_is_named_and_the_others_answered(
    finished_run: Path, images: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("deit_fast.weights.prediction.ratio_limit", lambda policy: 100)
    good, long = str(images / "val" / "class0" / "0.png"), str(tmp_path / "long.png")
    Image.new("RGB", (100, 1)).save(long)
    answer, (path, reason) = load(finished_run).predict([good, long])
    assert (answer.path, path) == (good, long)
    assert str(reason) == "the crop needs sides of less than 100 to 1, and it has 100 × 1 pixels"
