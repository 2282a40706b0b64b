"""Packing: the same images in the same order, readable by WebDataset, complete or continued, never half."""

import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from deit_fast.data import BadImage, decode, open_dataset
from deit_fast.data.sources import shards
from deit_fast.data.sources.open import open_unpacked
from deit_fast.tools.data.pack import pack
from deit_kernels.augment import Policy
from tests.deit_fast.data.cifar_files import write_cifar10
from tests.deit_fast.data.loader_cases import loader_of
from tests.deit_fast.data.memory_dataset import encoded_image


def packed(source, folder, **changes):
    pack(open_unpacked(str(source)), folder, **dict(shard_images=3, threads=2) | changes)
    return folder


def test_a_packed_folder_gives_the_batches_of_its_source_bit_for_bit(image_folder, tmp_path):
    folder = packed(image_folder, tmp_path / "packed")
    both = [open_dataset(str(path)) for path in (image_folder, folder)]
    for source, copy in zip(*both, strict=True):
        assert copy.classes == source.classes == ["ant", "bee"]
        assert np.array_equal(copy.labels, source.labels)
        assert [copy.read(index) for index in range(len(copy))] == [source.read(index) for index in range(len(copy))]
    settings = dict(data_seed=3, batch_size=4, total_steps=3, repeats=2)
    for one, other in zip(*(loader_of(train, Policy.deit(16), **settings) for train, _ in both), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    assert sorted(os.listdir(folder)) == [
        "classes.txt", "pack.json", "train-00000.tar", "train-00001.tar", "train-00002.tar", "train.index.npz",
        "val-00000.tar", "val-00001.tar", "val.index.npz",
    ]  # fmt: skip


def test_webdataset_reads_the_shards(image_folder, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    folder = packed(image_folder, tmp_path / "packed")
    train, _ = open_dataset(str(image_folder))
    paths = sorted(map(str, folder.glob("train-*.tar")))
    rows = list(webdataset.WebDataset(paths, shardshuffle=False).to_tuple("jpg", "cls"))
    assert [(image, int(label)) for image, label in rows] == [
        (train.read(index), int(train.labels[index])) for index in range(8)
    ]


def test_opening_a_packed_folder_scans_nothing_even_after_a_copy(image_folder, tmp_path, monkeypatch):
    folder = packed(image_folder, tmp_path / "packed")
    for shard in folder.glob("*.tar"):
        os.utime(shard, (1, 1))
    monkeypatch.setattr(shards, "scan", None)
    assert len(open_dataset(str(folder))[0]) == 8


def test_a_packed_folder_that_lost_a_shard_is_not_taken_for_a_smaller_one(image_folder, tmp_path):
    folder = packed(image_folder, tmp_path / "packed")
    (folder / "train-00001.tar").unlink()
    with pytest.raises(ValueError, match=r"the shards beside .*train\.index\.npz are not those that it lists"):
        open_dataset(str(folder))


def test_members_are_named_by_number_file_and_content(image_folder, tmp_path):
    odd = image_folder / "train/ant/a.b ü.JPEG"
    odd.write_bytes(encoded_image(1, "PNG"))
    folder = packed(image_folder, tmp_path / "packed", shard_images=100)
    with tarfile.open(folder / "train-00000.tar") as tar:
        names = tar.getnames()
    assert names[:2] == ["00000000-0.jpg", "00000000-0.cls"]
    assert names[8:10] == ["00000004-a_b_.png", "00000004-a_b_.cls"]


def test_images_are_re_encoded_only_where_they_are_too_large(tmp_path):
    sizes = [(40, 30), (30, 20), (64, 128)]
    for split in ("train", "val"):
        (tmp_path / f"set/{split}/ant").mkdir(parents=True)
        for number, (width, height) in enumerate(sizes):
            Image.new("RGB", (width, height), (number, 200, 30)).save(tmp_path / f"set/{split}/ant/{number}.png")
    folder = packed(tmp_path / "set", tmp_path / "packed", max_side=32)
    source, copy = (open_dataset(str(path))[0] for path in (tmp_path / "set", folder))
    assert [decode(copy.read(index)).shape for index in range(3)] == [(24, 32, 3), (20, 30, 3), (32, 16, 3)]
    assert copy.read(1) == source.read(1)
    assert copy.path(0).endswith(".jpg")


def test_decoded_sets_are_packed_without_loss(tmp_path):
    write_cifar10(tmp_path)
    folder = packed(tmp_path, tmp_path / "packed", shard_images=50)
    source, copy = (open_dataset(str(path))[0] for path in (tmp_path, folder))
    assert all(np.array_equal(decode(copy.read(index)), source.read(index)) for index in range(len(source)))


class Interrupted(Exception):
    pass


def test_an_interrupted_run_is_continued_and_never_leaves_half_a_shard(image_folder, tmp_path):
    whole = packed(image_folder, tmp_path / "whole")
    splits, folder = open_unpacked(str(image_folder)), tmp_path / "packed"
    done = []

    def interrupt(images):
        done.append(images)
        if sum(done) == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        pack(splits, folder, shard_images=3, advance=interrupt)
    assert sorted(os.listdir(folder)) == ["classes.txt", "pack.json", "train-00000.tar"]
    with pytest.raises(ValueError, match=r"is only packed in part: run the same deit-fast data pack command again"):
        open_dataset(str(folder))
    first = os.stat(folder / "train-00000.tar").st_mtime_ns
    reported = []
    pack(splits, folder, shard_images=3, advance=reported.append)
    assert sum(reported) == 12
    assert os.stat(folder / "train-00000.tar").st_mtime_ns == first
    for file in whole.iterdir():
        if file.suffix == ".tar":
            assert (folder / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(("split", "says"), [("train", "training"), ("val", "validation")])
def test_a_folder_packed_from_one_split_is_complete_and_says_what_training_lacks(image_folder, tmp_path, split, says):
    whole, source = packed(image_folder, tmp_path / "whole"), tmp_path / "source"
    source.mkdir()
    for shard in whole.glob(f"{split}-*.tar"):
        shard.rename(source / shard.name)
    folder = packed(source, tmp_path / "packed")
    assert list(open_unpacked(str(folder))) == [split]
    with pytest.raises(ValueError, match=f"{folder} has {says} images only: add files with"):
        open_dataset(str(folder))
    (folder / f"{split}.index.npz").unlink()
    with pytest.raises(ValueError, match="is only packed in part"):
        open_dataset(str(folder))


def test_another_source_or_other_settings_are_refused(image_folder, tmp_path):
    folder = packed(image_folder, tmp_path / "packed")
    with pytest.raises(ValueError, match="was packed from another source or list of images, or with other settings"):
        packed(image_folder, folder, max_side=32)
    with pytest.raises(ValueError, match=r"is not empty \(it holds train\)"):
        packed(image_folder, image_folder)


@pytest.mark.parametrize("change", ["another name", "another class", "one for another"])
def test_shards_are_not_continued_with_other_images_of_the_same_number(image_folder, tmp_path, change):
    folder = packed(image_folder, tmp_path / "packed")
    (folder / "train.index.npz").unlink()
    first = image_folder / "train/ant/0.jpg"
    if change == "one for another":
        first.unlink()
        (image_folder / "train/ant/9.jpg").write_bytes(encoded_image(9, "JPEG"))
    else:
        first.rename(image_folder / ("train/ant/9.jpg" if change == "another name" else "train/bee/9.jpg"))
    with pytest.raises(ValueError, match="was packed from another source or list of images"):
        packed(image_folder, folder)


def test_shards_whose_labels_are_not_those_of_the_source_are_refused(image_folder, tmp_path):
    folder, splits = packed(image_folder, tmp_path / "packed"), open_unpacked(str(image_folder))
    splits["train"].labels = splits["train"].labels[::-1]
    with pytest.raises(ValueError, match="have changed since"):
        pack(splits, folder, shard_images=3)


def test_an_unreadable_image_stops_and_what_is_said_of_it_is_true(image_folder, tmp_path):
    broken, folder = image_folder / "train/bee/2.jpg", tmp_path / "packed"
    sound = broken.read_bytes()
    broken.unlink()
    broken.symlink_to(tmp_path / "nowhere")
    advice = f"repair it and run the same command again, or remove it and {folder}, which was begun with it"
    with pytest.raises(BadImage, match=rf"{broken}: .*No such file.*{advice}.*deit-fast data check lists all"):
        packed(image_folder, folder)
    assert (folder / "train-00001.tar").exists()
    broken.unlink()
    broken.write_bytes(sound)
    packed(image_folder, folder)
    assert len(open_dataset(str(folder))[0]) == 8
    shutil.rmtree(folder)
    broken.unlink()
    packed(image_folder, folder)
    assert len(open_dataset(str(folder))[0]) == 7


def test_an_image_that_cannot_be_re_encoded_stops_and_is_named(image_folder, tmp_path):
    broken = image_folder / "train/bee/2.jpg"
    broken.write_bytes(b"text")
    with pytest.raises(BadImage, match=rf"{broken}: "):
        packed(image_folder, tmp_path / "packed", max_side=32)


def test_an_image_too_large_to_open_stops_and_is_named(image_folder, tmp_path):
    bomb = image_folder / "train/bee/2.jpg"
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    reason = r"it is a decompression bomb .*repair it and run .* \(deit-fast data check lists all\)"
    with pytest.raises(BadImage, match=f"{bomb}: {reason}"):
        packed(image_folder, tmp_path / "packed", max_side=32)


@pytest.mark.parametrize("start", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", b"GIF89a\1"])
def test_what_no_image_format_reads_stops_the_re_encoding_and_is_named(image_folder, tmp_path, start):
    broken = image_folder / "train/bee/2.jpg"
    broken.write_bytes(start)
    with pytest.raises(BadImage, match=f"{broken}: it is "):
        packed(image_folder, tmp_path / "packed", max_side=8)


def test_a_shard_that_reads_back_differently_is_not_kept(image_folder, tmp_path, monkeypatch):
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *where: pread(*where)[:-1] + b"?")
    with pytest.raises(ValueError, match="differs from what was written: is the disk sound"):
        packed(image_folder, tmp_path / "packed")
    assert sorted(os.listdir(tmp_path / "packed")) == ["classes.txt", "pack.json"]


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_description_is_named(image_folder, tmp_path, text):
    folder = packed(image_folder, tmp_path / "packed")
    json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(text)
    with pytest.raises(ValueError, match=r"pack\.json cannot be read"):
        open_dataset(str(folder))
    with pytest.raises(ValueError, match=r"pack\.json cannot be read"):
        packed(image_folder, folder)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(max_side=-1), "--max-side lies between 0 and 65000, got -1"),
        (dict(quality=100), "--quality lies between 1 and 95, got 100"),
        (dict(shard_images=0), "--shard-images lies between 1"),
        (dict(threads=0), "--threads lies between 1"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        pack({}, tmp_path, **wrong)


def test_a_pack_that_was_begun_before_names_were_digested_goes_on(image_folder, tmp_path):
    folder, splits = tmp_path / "packed", open_unpacked(str(image_folder))
    pack(splits, folder)
    description = json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(json.dumps(description | {"version": ""}))
    pack(splits, folder)
    (folder / "pack.json").write_text(json.dumps(description | {"version": "another"}))
    with pytest.raises(ValueError, match="another source or list of images"):
        pack(splits, folder)


def test_a_shard_damaged_later_is_written_anew_when_it_is_removed(image_folder, tmp_path):
    folder, splits = tmp_path / "packed", open_unpacked(str(image_folder))
    pack(splits, folder)
    shard = folder / "train-00000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:3000])
    with pytest.raises(ValueError, match=r"remove those and run the same deit-fast data pack command again"):
        open_dataset(str(folder))
    with pytest.raises(ValueError, match=r"train-00000\.tar .* or remove it, and the same command writes it anew"):
        pack(splits, folder)
    shard.unlink()
    pack(splits, folder)
    open_dataset(str(folder))
    assert [member.name for member in tarfile.open(shard)]
