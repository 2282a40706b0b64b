"""`deit-fast evaluate` on a made-up ImageNet whose every count is known, and what it refuses."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import timm.data
import torch
from PIL import Image
from safetensors.torch import save_file

from deit_fast.tools.evaluate.__main__ import main

CLASSES = [f"n{number:08}" for number in range(12)]
# (label, what the image looks like) of ILSVRC2012_val_00000001 to 8, and the labels that ReaL gives them.
VALIDATION = [(0, 0), (1, 1), (2, 4), (3, 9), (5, 5), (10, 11), (11, 11), (7, 2)]
REAL = [[0], [], [2, 4], [9, 3], [6], [11], [3], [7]]

# Class k is the grey 20 k. An image of class k is painted 20 k + 3, so that the classes nearest to it are k, k + 1,
# k − 1, k + 2, k − 2 in this order: the first choice of the model and its first five are known.
MODEL = """
import torch
from torch import nn

class Nearest(nn.Module):
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self, classes=12):
        super().__init__()
        self.greys = nn.Parameter(20.0 * torch.arange(classes) / 255)

    def forward(self, images):
        return -1000 * (images.mean((1, 2, 3))[:, None] - self.greys) ** 2

def nearest():
    return Nearest()

def thousand():
    return Nearest(1000)

def weights():
    return {"scale": torch.ones(3)}

def number():
    return 12
"""


def paint(path: Path, looks_like: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (20 * looks_like + 3,) * 3).save(path, "PNG")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ in class folders, val/ flat with val.txt, folders/ with the same images in class folders, V2, ReaL."""
    root = tmp_path_factory.mktemp("imagenet")
    for label, name in enumerate(CLASSES):
        paint(root / "train" / name / "a.JPEG", label)
    lines = []
    for number, (label, looks_like) in enumerate(VALIDATION, 1):
        file = f"ILSVRC2012_val_{number:08}.JPEG"
        paint(root / "val" / file, looks_like)
        paint(root / "folders" / CLASSES[label] / file, looks_like)
        lines.append(f"{file} {label}")
    (root / "val" / "val.txt").write_text("\n".join(lines))
    (root / "real.json").write_text(json.dumps(REAL))
    for variant in ("matched-frequency", "threshold0.7", "top-images"):
        for label in range(12):  # sorted as text: 0, 1, 10, 11, 2, …
            paint(root / "v2" / f"imagenetv2-{variant}-format-val" / str(label) / "a.jpeg", label)
    paint(root / "v2" / "imagenetv2-top-images-format-val" / "2" / "b.jpeg", 10)
    return root


@pytest.fixture(autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory, teachers: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module `grey_models`, on the path beside `tiny_teachers`."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "grey_models.py").write_text(MODEL)
    monkeypatch.syspath_prepend(teachers)
    monkeypatch.syspath_prepend(folder)
    return folder


def results(tmp_path: Path, *arguments: object) -> dict:
    """What --json holds."""
    file = tmp_path / "results.json"
    assert main([*map(str, arguments), "--image-size", "8", "--threads", "1", "--json", str(file)]) == 0
    return json.loads(file.read_text())


def score(result: dict, part: str = "scores") -> tuple[float, float, int]:
    numbers = result[part]["model"]["cls"]
    return numbers["top1"], numbers["top5"], numbers["n"]


def test_imagenet_and_real_are_counted_as_by_hand(imagenet: Path, tmp_path: Path, capsys) -> None:
    """The whole tree, its flat val/, and class folders, in which four of the twelve classes are missing.

    Right are images 1, 2, 5 and 7, in the first five also 3 and 6. ReaL leaves out image 2 and accepts 1, 3, 4 and 6,
    in the first five also 5.
    """
    arguments = ["grey_models:nearest", "--real-labels", imagenet / "real.json", "--batch-size", 3]
    found = results(tmp_path, *arguments, "--data", imagenet, imagenet / "val", imagenet / "folders")["data"]
    assert [Path(result["name"]).name for result in found] == [imagenet.name, "val", "folders"]
    assert capsys.readouterr().out.count("top-5") == 3
    for result in found:
        assert score(result) == (50.0, 75.0, 8)
        assert score(result, "real") == (100 * 4 / 7, 100 * 5 / 7, 7)
        per_class = dict(zip(result["per_class"]["classes"], result["per_class"]["top1"]["model/cls"], strict=True))
        assert [per_class[CLASSES[label]] for label in (0, 2, 4, 11)] == [100.0, 0.0, None, 100.0]
        assert [CLASSES[2], CLASSES[4], 1] in result["confused"]["pairs"]
        assert result["disagreement"] == {"names": ["truth", "model/cls"], "share": [[0.0, 0.5], [0.5, 0.0]]}
        assert result["images_per_second"] > 0


def test_the_three_variants_of_v2_are_counted_by_number(imagenet: Path, tmp_path: Path) -> None:
    alone = results(tmp_path, "grey_models:nearest", "--data", imagenet / "v2")["data"]
    # Named classes, told by the training images, or numbers, told by the folders themselves.
    named = results(tmp_path, "grey_models:nearest", "--data", imagenet, imagenet / "v2")["data"][1:]
    for found in (alone, named):
        names = [Path(result["name"]).name for result in found]
        assert names == [f"imagenetv2-{v}-format-val" for v in ("matched-frequency", "threshold0.7", "top-images")]
        assert [score(result) for result in found] == [(100.0, 100.0, 12)] * 2 + [(100 * 12 / 13, 100 * 12 / 13, 13)]
        assert "real" not in found[0]


def test_a_thousand_classes_are_imagenets_without_its_training_images(imagenet: Path, tmp_path: Path) -> None:
    """V2 alone, and some of ImageNet's folders, whose ReaL labels are timm's copy: one image has some, one none."""
    lists = json.loads((Path(timm.data.__file__).parent / "_info" / "imagenet_real_labels.json").read_text())
    full, empty = ([*map(bool, lists)].index(wanted) + 1 for wanted in (True, False))
    for number in (full, empty):
        paint(tmp_path / "some" / "n01443537" / f"ILSVRC2012_val_{number:08}.JPEG", looks_like=1)  # goldfish is 1
    v2, some = results(tmp_path, "grey_models:thousand", "--data", imagenet / "v2", tmp_path / "some")["data"][-2:]
    assert score(v2) == (100 * 12 / 13, 100 * 12 / 13, 13)
    assert score(some) == (100.0, 100.0, 2)
    assert score(some, "real")[2] == 1


def by_two(models: Path, *arguments: object) -> tuple[list[int], list[str]]:
    """Exit codes and standard errors of two processes of one evaluation."""
    size = ["--image-size", "8", "--threads", "1"]
    command = [sys.executable, "-m", "deit_fast", "evaluate", *map(str, arguments), *size]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join([str(models), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    options = dict(stderr=subprocess.PIPE, text=True)
    processes = [
        subprocess.Popen(command, env={**environment, "RANK": rank, "LOCAL_RANK": rank}, **options) for rank in "01"
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], errors


def test_two_processes_count_as_one(imagenet: Path, tmp_path: Path, models: Path) -> None:
    arguments = ["grey_models:nearest", "--data", imagenet, imagenet / "v2", "--real-labels", imagenet / "real.json"]
    alone = results(tmp_path, *arguments, "--batch-size", 3)
    file = tmp_path / "two.json"
    codes, _ = by_two(models, *arguments, "--batch-size", "3", "--json", file)
    assert codes == [0, 0]
    together = json.loads(file.read_text())
    assert (alone["processes"], together["processes"]) == (1, 2)
    for one, two in zip(alone["data"], together["data"], strict=True):
        for key in one.keys() - {"seconds", "images_per_second"}:
            assert one[key] == two[key], key


def test_a_run_knows_its_data_its_size_and_its_teacher(finished_run: Path, tmp_path: Path, capsys) -> None:
    """Last weights and moving average score what the summary says, beside the teacher."""
    file, picture = tmp_path / "results.json", tmp_path / "confusion.png"
    assert main([str(finished_run), "--json", str(file), "--confusion", str(picture)]) == 0
    found = json.loads(file.read_text())
    summary = json.loads((finished_run / "summary.json").read_text())
    (result,) = found["data"]
    for part, name in (("student", "model"), ("ema", "ema")):
        for head, expected in summary[part].items():
            assert result["scores"][name][head] == pytest.approx(expected, rel=1e-6)
    assert result["scores"]["teacher"]["cls"] == pytest.approx(summary["teacher"], rel=1e-6)
    assert result["disagreement"]["names"][:3] == ["truth", "teacher/cls", "model/fused"]
    assert (found["image_size"], found["crop_ratio"], result["images"]) == (16, 0.875, 15)
    assert found["command"].startswith("deit-fast evaluate ") and found["machine"] and found["date"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    for line in ("moving average: class token", "teacher", "classified differently", "most frequent mistakes"):
        assert line in out
    assert "top-1" in out and "top-5" not in out, "of three classes every answer is among the first five"
    assert main([str(finished_run), "--teacher", "-"]) == 0
    assert "teacher" not in capsys.readouterr().out


def test_models_beside_each_other_see_the_same_images(finished_run: Path, tmp_path: Path) -> None:
    """As in the paper's Table 4: two runs and the teacher of the first, each image decoded once."""
    shutil.copytree(finished_run, tmp_path / "other")
    file = tmp_path / "results.json"
    assert main([str(finished_run), str(tmp_path / "other"), "--json", str(file)]) == 0
    (result,) = json.loads(file.read_text())["data"]
    assert list(result["scores"]) == ["run", "run ema", "other", "other ema", "teacher"]
    assert result["scores"]["run ema"] == result["scores"]["other ema"]


def test_a_run_called_teacher_is_not_replaced_by_the_teacher(finished_run: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(finished_run, tmp_path / "teacher")
    both = [str(finished_run), str(tmp_path / "teacher")]
    assert "is called teacher" in refused(capsys, *both)
    assert main([*both, "--teacher", "-"]) == 0


def test_our_files_and_any_model_of_timm_are_evaluated_alike(images: Path, tmp_path: Path) -> None:
    """A weights file, timm's and ours; the crop ratio is official, timm's or a number."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet", num_classes=3).state_dict(), tmp_path / "weights.safetensors")
    arguments = [tmp_path / "weights.safetensors", "--architecture", "test_efficientnet", "--data", images]
    ratios = {}
    for ratio in ("", "official", "timm", "0.5"):
        found = results(tmp_path, *arguments, *(["--crop-ratio", ratio] if ratio else []))
        ratios[ratio] = found["crop_ratio"]
        assert found["data"][0]["scores"]["model"]["cls"]["n"] == 15
    assert ratios == {"": 0.95, "official": 0.875, "timm": 0.95, "0.5": 0.5}


def test_position_embeddings_follow_the_image_size(finished_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert main([str(finished_run), "--image-size", "24", "--teacher", "-", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["image_size"] == 24


def test_a_real_teacher_knows_real_photographs(tmp_path: Path) -> None:
    """EfficientNet-Lite0 out of its package: chelsea is one of three cats, coffee an espresso, rocket a missile."""
    from skimage import data

    photos = {"n02123045": "cat", "n07920052": "coffee", "n03773504": "rocket"}
    for number, (synset, photo) in enumerate(photos.items(), 1):
        (tmp_path / "photos" / synset).mkdir(parents=True)
        Image.fromarray(getattr(data, photo)()).save(tmp_path / "photos" / synset / f"ILSVRC2012_val_{number:08}.png")
    (tmp_path / "real.json").write_text("[[281, 282, 285], [967], [657]]")  # tabby, tiger cat, Egyptian cat; …
    file = tmp_path / "results.json"
    command = ["deit_fast.teacher:efficientnet_lite0_weights", "--architecture", "tf_efficientnet_lite0"]
    command += ["--data", str(tmp_path / "photos"), "--real-labels", str(tmp_path / "real.json"), "--json", str(file)]
    assert main(command) == 0
    found = json.loads(file.read_text())
    assert (found["image_size"], found["crop_ratio"]) == (224, 0.875)
    (result,) = found["data"]
    assert result["real"]["model"]["cls"] == {"top1": 100.0, "top5": 100.0, "n": 3}
    per_class = dict(zip(result["per_class"]["classes"], result["per_class"]["top1"]["model/cls"], strict=True))
    assert (per_class["n07920052"], per_class["n03773504"]) == (100.0, 100.0)


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The sentence of a command that is refused."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_what_cannot_be_evaluated_says_so(imagenet: Path, finished_run: Path, tmp_path: Path, capsys) -> None:
    nearest = "grey_models:nearest"
    assert "nothing to evaluate" in refused(capsys)
    assert "type --data FOLDER" in refused(capsys, nearest)
    assert "did you mean deit_tiny_patch16_224" in refused(capsys, "deit_tiny_patch16_22", "--data", "digits")
    assert "there is no file or folder runs/none" in refused(capsys, "runs/none")
    assert "knows 12 classes, digits has 10" in refused(capsys, nearest, "--data", "digits")
    assert "which the training images lack" in refused(capsys, finished_run, "--data", imagenet, "--teacher", "-")
    assert "returned a int" in refused(capsys, "grey_models:number", "--data", imagenet)
    assert "type --architecture NAME" in refused(capsys, "grey_models:weights", "--data", imagenet)
    assert "--crop-ratio takes official" in refused(capsys, nearest, "--data", imagenet, "--crop-ratio", "1.2")
    assert "no crop ratio" in refused(capsys, nearest, "--data", imagenet, "--crop-ratio", "timm")
    assert "--batch-size 0" in refused(capsys, nearest, "--data", imagenet, "--batch-size", "0")
    assert "there is no folder" in refused(capsys, nearest, "--data", imagenet, "--json", tmp_path / "no" / "a.json")
    assert "it is a folder): type the path of a file" in refused(
        capsys, nearest, "--data", imagenet, "--json", tmp_path
    )
    jpg = tmp_path / "confusion.jpg"
    assert f"type {jpg}.png" in refused(capsys, nearest, "--data", imagenet, "--confusion", jpg)
    assert "is not a multiple of patch_size 8: use 16" in refused(capsys, finished_run, "--image-size", "20")
    assert "know different classes" in refused(capsys, nearest, "grey_models:thousand", "--data", imagenet)
    assert "one by one" in refused(capsys, finished_run, nearest)
    assert "for --teacher, neither a path here nor a name" in refused(capsys, finished_run, "--teacher", "regnety_16")


def test_a_weights_file_of_another_architecture_is_refused(images: Path, tmp_path: Path, capsys) -> None:
    save_file(timm.create_model("test_efficientnet", num_classes=3).state_dict(), tmp_path / "weights.safetensors")
    error = refused(capsys, tmp_path / "weights.safetensors", "--architecture", "resnet18", "--data", images)
    assert "these weights do not fit the model" in error


def test_a_size_that_the_patches_of_a_timm_model_do_not_divide_is_refused(images: Path, tmp_path: Path, capsys) -> None:
    save_file(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "weights.safetensors")
    command = [tmp_path / "weights.safetensors", "--architecture", "test_vit", "--data", images]
    assert "should be divisible by patch size (16)" in refused(capsys, *command, "--image-size", "100")
    assert main([*map(str, command), "--image-size", "64"]) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[0], [1]]", "has 2 lists of labels: expected 50000, .* or 8, one for each image here"),
        (json.dumps([[0]] * 9), "has 9 lists of labels"),
        (json.dumps([[99]] * 8), "has the label 99, the model knows 12 classes"),
        ("{", "is not real.json"),
    ],
)
def test_a_file_of_other_real_labels_is_refused(imagenet: Path, tmp_path: Path, capsys, text: str, says: str) -> None:
    (tmp_path / "real.json").write_text(text)
    error = refused(capsys, "grey_models:nearest", "--data", imagenet, "--real-labels", tmp_path / "real.json")
    assert re.search(says, error)


def test_real_labels_for_other_images_are_refused(imagenet: Path, capsys) -> None:
    command = ["grey_models:nearest", "--data", imagenet / "v2", "--real-labels", imagenet / "real.json"]
    assert "has none of them" in refused(capsys, *command)


@pytest.fixture
def broken(imagenet: Path, tmp_path: Path) -> Path:
    """The unreadable image in tmp_path/copy."""
    shutil.copytree(imagenet, tmp_path / "copy")
    file = tmp_path / "copy" / "val" / "ILSVRC2012_val_00000004.JPEG"
    file.write_bytes(b"no image")
    return file


@pytest.mark.parametrize("options", [[], ["--bad-images", "skip"]])
def test_unreadable_images_are_named_and_left_out(broken: Path, tmp_path: Path, capsys, options: list[str]) -> None:
    broken.with_suffix(".heic").touch()
    (result,) = results(tmp_path, "grey_models:nearest", "--data", tmp_path / "copy", *options)["data"]
    assert result["unreadable"] == [str(broken)] and score(result) == (100 * 4 / 7, 100 * 6 / 7, 7)
    printed = " ".join(capsys.readouterr().out.split())
    assert str(broken) in printed and "1 .heic" in printed


def test_an_unreadable_image_ends_the_evaluation_when_asked(broken: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "results.json"
    command = ["grey_models:nearest", "--data", tmp_path / "copy", "--image-size", "8", "--json", file]
    error = refused(capsys, *command, "--bad-images", "fail")
    assert error.startswith(f"error: {broken}: it is not an image")
    assert error.endswith("repair or remove it, or type --bad-images skip\n")
    assert not file.exists()


def test_an_unreadable_image_ends_both_processes_with_one_sentence(broken: Path, tmp_path: Path, models: Path) -> None:
    codes, errors = by_two(models, "grey_models:nearest", "--data", tmp_path / "copy", "--bad-images", "fail")
    assert codes == [2, 2], errors
    (said,) = [line for error in errors for line in error.splitlines() if line.startswith("error:")]
    assert said.startswith(f"error: {broken}: it is not an image") and "Traceback" not in "".join(errors)
