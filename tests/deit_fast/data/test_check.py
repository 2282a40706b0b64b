"""`check` names everything broken, odd or there twice; `pack` and `check` as commands."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from cifar_files import write_cifar10
from memory_dataset import encoded_image
from PIL import Image

from deit_fast.data.__main__ import main
from deit_fast.data.check import check
from deit_fast.data.decode import decode
from deit_fast.data.sources import open_unpacked


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


def by_file(found):
    return {os.path.basename(name): what for name, what in found}


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
        "deep.png": "mode I;16",
        "moving.webp": "2 frames",
        "turned.jpg": "EXIF orientation 6",
        "scratched.jpg": "damaged in part",
    }


def test_an_image_too_long_for_some_crops_is_odd_and_for_all_broken(image_folder):
    ant = image_folder / "train/ant"
    save(ant / "long.png", Image.new("1", (1, 80_000)).convert("L"), format="PNG")
    save(ant / "short.png", Image.new("1", (1, 16_000)).convert("L"), format="PNG")
    save(ant / "endless.png", Image.new("1", (17_000_000, 1)), format="PNG")
    report = check(open_unpacked(str(image_folder)), threads=2)
    assert by_file(report.odd) == {"long.png": "1 × 80000 pixels, which some crops refuse"}
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


# Commands


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
    assert main(["pack", str(image_folder), str(tmp_path / "packed"), "--shard-images", "5"]) == 0
    assert f"packed: type --data {tmp_path}/packed" in capsys.readouterr().out
    script = [sys.executable, "-m", "deit_fast", "data", "check", str(tmp_path / "packed")]
    result = subprocess.run(script, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "12 images: 0 broken" in result.stdout


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

    monkeypatch.setattr("deit_fast.data.__main__.check", interrupt)
    assert main(["check", str(image_folder)]) == 130
