"""`check` names everything broken, odd or there twice; `pack` and `check` as commands."""

import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from deit_fast.data.decode import decode
from deit_fast.data.sources.folder import IMAGE_FILES
from deit_fast.data.sources.open import open_unpacked
from deit_fast.tools.data.__main__ import main
from deit_fast.tools.data.check import check
from tests.deit_fast.data.cifar_files import write_cifar10
from tests.deit_fast.data.memory_dataset import encoded_image
from tests.deit_fast.tools.data.check_cases import by_file, checked


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    image.save(file, options.pop("format"), **options)
    path.write_bytes(file.getvalue())


@pytest.fixture
def odd_folder(image_folder):
    """One image of every kind of trouble, in the class ant of the training images."""
    ant = image_folder / "train/ant"
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    rgb = Image.fromarray(noise[..., :3])
    (ant / "empty.jpg").write_bytes(b"")
    (ant / "text.jpg").write_bytes(b"<html>404</html>")
    (ant / "cut.jpg").write_bytes(encoded_image(7, "JPEG")[:-300])
    (ant / "dead.jpg").symlink_to(image_folder / "nowhere.jpg")
    save(ant / "bomb.png", Image.new("1", (30_000, 30_000)), format="PNG")
    save(ant / "named.jpeg", rgb, format="PNG")
    save(ant / "cmyk.jpg", Image.frombytes("CMYK", (30, 20), noise.tobytes()), format="JPEG")
    save(ant / "palette.png", rgb.quantize(16), format="PNG")
    save(ant / "alpha.png", Image.fromarray(noise), format="PNG")
    save(ant / "deep.png", Image.fromarray(noise[..., 0].astype(np.uint16) * 257), format="PNG")
    save(ant / "moving.webp", rgb, format="WEBP", save_all=True, append_images=[rgb.rotate(90)])
    exif = Image.Exif()
    exif[0x0112] = 6
    save(ant / "turned.jpg", rgb, format="JPEG", exif=exif)
    sound = encoded_image(8, "JPEG")
    (ant / "scratched.jpg").write_bytes(sound[:-2] + bytes(50) + sound[-2:])  # more data than pixels
    save(ant / "grey.jpg", rgb.convert("L"), format="JPEG")
    return image_folder


def test_everything_is_named_and_nothing_sound_is(odd_folder):
    report = check(open_unpacked(str(odd_folder)), threads=2)
    assert report.images == 26
    broken, odd = by_file(report.broken), by_file(report.odd)
    assert set(broken) == {"empty.jpg", "text.jpg", "cut.jpg", "dead.jpg", "bomb.png"}
    assert broken["empty.jpg"] == "the file is empty"
    assert broken["dead.jpg"] == "it cannot be read (No such file or directory)"
    assert broken["bomb.png"].startswith("it is a decompression bomb")
    assert odd == {
        "named.jpeg": "PNG, named .jpeg",
        "cmyk.jpg": "CMYK",
        "palette.png": "a palette",
        "alpha.png": "alpha",
        "deep.png": "16 bits of grey, which become white: save it with 8",
        "moving.webp": "2 frames",
        "turned.jpg": "EXIF orientation 6",
        "scratched.jpg": "damaged in part",
    }


def test_what_is_left_out_is_named_with_the_reason(image_folder, capsys):
    ant = image_folder / "train/ant"
    for path in (ant / "photo.heic", ant / "notes", image_folder / "val" / "loose.png"):
        path.touch()
    assert main(["check", str(image_folder)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"left out: {ant}/photo.heic: .heic is no suffix of an image" in said
    assert f"left out: {ant}/notes: its name has no suffix" in said
    assert f"left out: {image_folder}/val/loose.png: it lies beside the class folders" in said
    assert said[-1].startswith("12 images: 0 broken, 0 odd, ") and said[-1].endswith(", 3 left out")


def test_the_suffixes_of_one_format_are_not_odd(image_folder):
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    save(image_folder / "train/ant/a.jfif", pixels, format="JPEG")
    save(image_folder / "train/ant/b.mpo", pixels, format="MPO", save_all=True, append_images=[pixels])
    save(image_folder / "train/ant/c.jp2", pixels, format="JPEG2000")
    assert by_file(check(open_unpacked(str(image_folder)), threads=1).odd) == {}


def test_an_image_of_which_crops_see_almost_nothing_is_odd_and_one_that_all_refuse_is_broken(image_folder):
    ant = image_folder / "train/ant"
    sizes = {"long": (1, 80_000), "strip": (8000, 50), "dot": (1, 1), "low": (60, 7), "digit": (8, 8), "sign": (90, 10)}
    for name, size in sizes.items():
        save(ant / f"{name}.png", Image.new("1", size).convert("L"), format="PNG")
    save(ant / "endless.png", Image.new("1", (17_000_000, 1)), format="PNG")
    report = check(open_unpacked(str(image_folder)), threads=2)
    assert by_file(report.odd) == {
        "long.png": "1 × 80000 pixels, which some crops refuse",
        "strip.png": "8000 × 50 pixels, of which a square crop sees 0.62 %",
        "dot.png": "1 × 1 pixels, too few to show anything",
        "low.png": "60 × 7 pixels, too few to show anything",
    }
    assert by_file(report.broken) == {"endless.png": "17000000 × 1 has a side above the limit of 16777215 pixels"}


def test_an_animation_damaged_behind_its_first_frame_is_broken_and_the_others_are_looked_at(image_folder):
    """Whatever Pillow's parser raises: struct.error, IndexError, …"""
    noise = np.random.default_rng(1).integers(0, 256, (20, 30), dtype=np.uint8)
    file = io.BytesIO()
    frames = [Image.fromarray(np.roll(noise, number)) for number in range(3)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    data = file.getvalue()
    second = data.rindex(b"\x21\xf9\x04", 0, len(data) // 2)  # its control block
    cuts = {"control.jpg": data[: second + 1], "size.gif.jpg": data[: second + 12], "flags.jpg": data[: second + 17]}
    for name, content in cuts.items():
        (image_folder / "train/ant" / name).write_bytes(content)
        assert decode(content).shape == (20, 30, 3)
    report = check(open_unpacked(str(image_folder)), threads=2)
    broken = by_file(report.broken)
    assert set(broken) == set(cuts)
    assert all(reason.startswith("it is truncated or corrupt") for reason in broken.values())
    assert report.images == 15


def test_equal_files_are_grouped_with_what_is_wrong_about_it(tmp_path):
    images = {
        "train/ant/a": 1, "train/ant/b": 1, "train/ant/c": 2, "train/bee/d": 3, "train/bee/e": 2, "val/ant/f": 4,
        "val/bee/g": 3,
    }  # fmt: skip
    for name, number in images.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.jpg").write_bytes(encoded_image(number, "JPEG"))
    report = check(open_unpacked(str(tmp_path)), threads=2)
    found = {tuple(os.path.basename(name) for name in names): remark for names, remark in report.duplicates}
    assert found == {
        ("a.jpg", "b.jpg"): "",
        ("c.jpg", "e.jpg"): "in different classes",
        ("d.jpg", "g.jpg"): "in train and val",
    }


def test_unreadable_files_are_not_each_others_duplicates(image_folder):
    for name in "xy":
        (image_folder / f"train/ant/{name}.jpg").symlink_to("nowhere.jpg")
    report = check(open_unpacked(str(image_folder)), threads=2)
    assert len(report.broken) == 2
    assert [names for names, _ in report.duplicates if "x.jpg" in names[0]] == []


def test_decoded_sets_are_checked_too(tmp_path):
    write_cifar10(tmp_path, images=2)
    report = check(open_unpacked(str(tmp_path)), threads=1)
    assert (report.images, report.broken, report.odd, report.duplicates) == (12, [], [], [])


def test_folder_errors_are_all_named_and_the_other_images_are_read(image_folder):
    train, val = image_folder / "train", image_folder / "val"
    (train / "cat").mkdir()
    (train / "ant/again").symlink_to(train / "ant")
    (train / "bee/loop").symlink_to("loop")
    (val / "dog").mkdir()
    (val / "dog/0.jpg").write_bytes(encoded_image(9, "JPEG"))
    broken, images = checked(image_folder)
    assert broken == {
        "cat": f"has no image ({IMAGE_FILES}): add images or remove the folder",
        "again": "is a link to a folder that contains it: remove the link",
        "loop": f"cannot follow the link {train / 'bee/loop'} (Too many levels of symbolic links): mend or remove it",
        "dog": "is a class that the training images lack: add images of it to train/ or remove its folder",
    }
    assert images == 13, "those of the dog too"


def test_a_folder_that_may_not_be_read_is_named_and_the_others_are_read(image_folder, monkeypatch):
    scandir, closed = os.scandir, image_folder / "train/ant"

    def guarded(path):
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    broken, images = checked(image_folder)
    assert broken == {"ant": f"cannot read the folder {closed} (Permission denied): check its permissions"}
    assert images == 8


def test_a_validation_split_without_any_image_is_broken_as_for_the_trainer(image_folder):
    for file in (image_folder / "val").rglob("*.*"):
        file.unlink()
    broken, images = checked(image_folder)
    assert "holds no image in its class folders" in broken["val"] and images == 8


def test_a_split_without_classes_is_named_and_the_other_is_read(image_folder):
    shutil.rmtree(image_folder / "train/ant")
    shutil.rmtree(image_folder / "train/bee")
    broken, images = checked(image_folder)
    assert broken == {"train": "holds no class folders: sort its images into one sub-folder per class"} and images == 4
    shutil.rmtree(image_folder / "train")
    broken, images = checked(image_folder)
    assert set(broken) == {"set"} and "has no train/" in broken["set"] and images == 4


def test_validation_images_without_a_label_are_all_named(image_folder):
    flat = image_folder / "val"
    shutil.rmtree(flat)
    flat.mkdir()
    for name in "abcd":
        (flat / f"{name}.jpg").write_bytes(encoded_image(ord(name), "JPEG"))
    (image_folder / "val.txt").write_text("a.jpg 1\nb.jpg 7\n")
    broken, images = checked(image_folder)
    source = image_folder / "val.txt"
    assert broken == {
        "b.jpg": f"{source} gives {flat / 'b.jpg'} the label 7, which the training images lack",
        "c.jpg": f"{source} has no label for {flat / 'c.jpg'}",
        "d.jpg": f"{source} has no label for {flat / 'd.jpg'}",
    }
    assert images == 12


def test_check_exits_with_1_where_something_is_broken(odd_folder, capsys):
    assert main(["check", str(odd_folder), "--threads", "1"]) == 1
    out = capsys.readouterr().out
    assert f"broken: {odd_folder}/train/ant/empty.jpg: the file is empty\n" in out
    assert f"odd: {odd_folder}/train/ant/cmyk.jpg: CMYK\n" in out
    assert out.rstrip().splitlines()[-1].startswith("26 images: 5 broken, 8 odd, ")


def test_check_exits_with_0_where_nothing_is_broken(image_folder, capsys):
    assert main(["check", str(image_folder)]) == 0
    assert "12 images: 0 broken, 0 odd" in capsys.readouterr().out


def test_pack_then_check_as_a_console_script(image_folder, tmp_path, capsys):
    (image_folder / "train/ant/new.heic").touch()
    assert main(["pack", str(image_folder), str(tmp_path / "packed"), "--shard-images", "5"]) == 0
    printed = capsys.readouterr().out
    assert "left out: 1 .heic, files that are not read" in printed
    assert f"packed: type --data {tmp_path}/packed" in printed
    assert f"images were copied without a look: deit-fast data check {tmp_path}/packed names broken ones" in printed
    script = [sys.executable, "-m", "deit_fast", "data", "check", str(tmp_path / "packed")]
    result = subprocess.run(script, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "12 images: 0 broken" in result.stdout


def test_pack_of_one_split_offers_nothing_that_cannot_be_typed(image_folder, tmp_path, capsys):
    assert main(["pack", str(image_folder), str(tmp_path / "packed")]) == 0
    for file in (tmp_path / "packed").glob("[!t]*"):  # all but the training shards
        file.unlink()
    (tmp_path / "packed/train.index.npz").unlink()
    assert main(["pack", str(tmp_path / "packed"), str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.endswith(f"packed: {tmp_path}/again without val\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "/nowhere"], "error: --data /nowhere is neither a folder nor a built-in set"),
        (["check", "digits", "--threads", "0"], "error: --threads is 1 or more, got 0"),
        (["pack", "digits", "/tmp/x", "--quality", "0"], "error: --quality lies between 1 and 95, got 0"),
    ],
)
def test_a_mistake_exits_with_2_and_one_sentence(arguments, message, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(message)


def test_ctrl_c_exits_with_130(image_folder, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("deit_fast.tools.data.__main__.check", interrupt)
    assert main(["check", str(image_folder)]) == 130
