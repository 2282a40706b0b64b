"""Tar shards: WebDataset's layout in any order, indexed once, with one sentence for everything that is not one."""

import io
import json
import tarfile

import numpy as np
import pytest

from deit_fast.data import decode, open_dataset
from deit_fast.data.sources import shards
from deit_fast.data.sources.shards import TarShards
from tests.deit_fast.data.memory_dataset import encoded_image


def write_tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def samples(numbers, label=lambda number: number % 2):
    return [
        member
        for number in numbers
        for member in ((f"{number:06}.jpg", encoded_image(number, "JPEG")), (f"{number:06}.cls", b"%d" % label(number)))
    ]


@pytest.fixture
def shard_folder(tmp_path):
    """Two training shards of three samples, one validation shard of two, with the names of timm's ImageNet."""
    folder = tmp_path / "shards"
    write_tar(folder / "set-train-0000.tar", samples([0, 1, 2]))
    write_tar(folder / "set-train-0001.tar", samples([3, 4, 5]))
    write_tar(folder / "set-validation-00.tar", samples([6, 7]))
    return folder


def refused(spec) -> str:
    with pytest.raises(ValueError) as caught:
        open_dataset(str(spec))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_samples_are_read_in_any_order(shard_folder):
    train, val = open_dataset(str(shard_folder))
    assert train.classes == val.classes == ["0", "1"]
    assert train.labels.tolist() == [0, 1] * 3
    assert val.labels.tolist() == [0, 1]
    for index in (5, 0, 3):
        assert train.read(index) == encoded_image(index, "JPEG")
        assert decode(train.read(index)).ndim == 3
    assert train.path(4) == f"{shard_folder}/set-train-0001.tar/000004.jpg"
    assert val.read(1) == encoded_image(7, "JPEG")


def test_class_names_lie_beside_the_shards(shard_folder):
    (shard_folder / "classes.txt").write_text("ant\nbee\n")
    train, val = open_dataset(str(shard_folder))
    assert train.classes == val.classes == ["ant", "bee"]


@pytest.mark.parametrize("layout", ["train/{}.tar val/{}.tar", "data/train-{}.tar data/test-{}.tar"])
def test_splits_are_told_by_folders_and_by_file_names(tmp_path, layout):
    train, val = layout.split()
    write_tar(tmp_path / train.format(0), samples([0, 1]))
    write_tar(tmp_path / val.format(0), samples([2]))
    assert [len(split) for split in open_dataset(str(tmp_path))] == [2, 1]


def test_a_json_member_may_hold_the_label_and_other_members_are_left_alone(tmp_path):
    image = encoded_image(0)
    members = [
        ("a/x.png", image), ("a/x.json", json.dumps({"label": 1, "size": 3}).encode()), ("a/x.txt", b"caption"),
        ("b/x.json", b'{"label": 1}'), ("b/x.seg.png", image), ("b/x.PNG", image), ("b/x.cls", b"0\n"),
    ]  # fmt: skip
    shard = TarShards([write_tar(tmp_path / "train.tar", members)], "set")
    assert shard.labels.tolist() == [1, 0]
    assert [shard.path(index)[-7:] for index in (0, 1)] == ["a/x.png", "b/x.PNG"]


def test_archives_beside_the_folders_that_came_out_of_them_are_left_alone(image_folder):
    write_tar(image_folder / "ILSVRC2012_img_train.tar", [("n01440764.tar", b"x" * 2000)])
    write_tar(image_folder / "ILSVRC2012_img_val.tar", [("ILSVRC2012_val_00000001.JPEG", b"x")])
    assert len(open_dataset(str(image_folder))[0]) == 8


def test_the_index_is_kept_until_a_shard_changes(shard_folder, monkeypatch):
    monkeypatch.setattr(shards, "CACHED_FROM", 1)
    first = open_dataset(str(shard_folder))[0]
    monkeypatch.setattr(shards, "scan", None)
    again = open_dataset(str(shard_folder))[0]
    assert [again.read(index) for index in range(6)] == [first.read(index) for index in range(6)]
    assert again.path(5) == first.path(5)
    monkeypatch.undo()
    monkeypatch.setattr(shards, "CACHED_FROM", 1)
    write_tar(shard_folder / "set-train-0001.tar", samples([3, 8, 9, 10]))
    changed = open_dataset(str(shard_folder))[0]
    assert len(changed) == 7
    assert changed.read(4) == encoded_image(8, "JPEG")


def test_a_shard_that_is_cut_off_later_is_a_read_error_of_its_images(shard_folder):
    train, _ = open_dataset(str(shard_folder))
    shard = shard_folder / "set-train-0001.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    assert train.read(0)
    with pytest.raises(OSError, match="the shard has become shorter since it was indexed"):
        train.read(5)
    shard.unlink()
    with pytest.raises(FileNotFoundError):
        train.read(5)


def test_a_truncated_shard_is_named(shard_folder):
    shard = shard_folder / "set-train-0001.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    text = refused(shard_folder)
    assert text.startswith(f"{shard} is not a readable tar file (unexpected end of data)")


def headers(shard) -> list[int]:
    """Where each member begins, and where the last one ends."""
    with tarfile.open(shard) as tar:
        return [member.offset for member in tar] + [tar.offset]


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("member", range(1, 7))
def test_a_shard_that_is_cut_off_at_or_in_a_header_is_not_taken_for_a_smaller_one(shard_folder, member):
    """The last place is that of the mark of the end."""
    shard = shard_folder / "set-train-0001.tar"
    data, start = shard.read_bytes(), headers(shard)[member]
    for end in (start, start + 1, start + 511):
        shard.write_bytes(data[:end])
        assert f"{shard} is not a readable tar file (unexpected end of data at byte {end})" in refused(shard_folder)


@pytest.mark.parametrize("member", range(1, 6))
def test_a_shard_with_a_damaged_header_is_not_taken_for_a_smaller_one(shard_folder, member):
    shard = shard_folder / "set-train-0001.tar"
    start = headers(shard)[member]
    shard.write_bytes(flipped(shard.read_bytes(), start + 3))
    assert refused(shard_folder).startswith(f"{shard} is not a readable tar file (damaged header at byte {start})")


def test_a_shard_that_is_zeros_from_some_member_on_is_not_taken_for_a_smaller_one(shard_folder):
    """As a download that takes its space first leaves it."""
    shard = write_tar(shard_folder / "set-train-0001.tar", samples(range(100)))
    data, end = shard.read_bytes(), headers(shard)[20]
    shard.write_bytes(data[:end].ljust(len(data), b"\0"))
    assert f"its members end at byte {end} of {len(data)}: part of it is zeros" in refused(shard_folder)


def test_two_archives_in_one_file_are_not_taken_for_the_first(shard_folder):
    shard = shard_folder / "set-train-0001.tar"
    shard.write_bytes(shard.read_bytes() * 2)
    assert "or it is joined with another" in refused(shard_folder)


@pytest.mark.parametrize("zeros", [512, 1024, 10_240, 64 * 512])
def test_whatever_a_writer_of_tars_fills_its_last_record_with_is_an_end(tmp_path, zeros):
    """One block, the two of Go and Rust, tar's own record of 20 blocks, the largest of POSIX (63)."""
    shard = write_tar(tmp_path / "train-0.tar", samples([0, 1]))
    shard.write_bytes(shard.read_bytes()[: headers(shard)[-1]] + bytes(zeros))
    assert len(TarShards([shard], "set")) == 2


def test_a_shard_of_webdatasets_writer_is_whole(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "train-0.tar")) as writer:
        for number in range(30):
            writer.write({"__key__": f"{number:03}", "jpg": encoded_image(number, "JPEG"), "cls": number})
    assert TarShards([tmp_path / "train-0.tar"], "set").labels.tolist() == list(range(30))


def test_what_is_no_tar_or_compressed_is_named(shard_folder):
    (shard_folder / "set-train-0001.tar").write_bytes(b"not a tar file" * 100)
    assert "set-train-0001.tar is not a readable tar file" in refused(shard_folder)
    write_tar(shard_folder / "set-train-0001.tar", samples([3]), "w:gz")
    assert refused(shard_folder).endswith("it is compressed: unpack it")


def test_compressed_archives_alone_say_to_unpack_them(tmp_path):
    write_tar(tmp_path / "train-0.tar.gz", samples([0]), "w:gz")
    assert "compressed shards" in refused(tmp_path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"x")], 'sample a has no label: neither a.cls nor "label" in a.json'),
        ([("a.cls", b"1")], "sample a has no image"),
        ([("a.jpg", b"x"), ("a.png", b"x"), ("a.cls", b"1")], "sample a has two images (a.jpg, a.png)"),
        ([("a.jpg", b"x"), ("a.cls", b"cat")], "train-0.tar/a.cls holds no label"),
        ([("a.jpg", b"x"), ("a.json", b"[1]")], "train-0.tar/a.json holds no label"),
        ([("a.jpg", b"x"), ("a.cls", b"-1")], "train-0.tar/a.jpg has label -1, outside 0 …"),
        ([("a.jpg", b"x"), ("a.cls", b"9" * 19)], "a.cls holds no label (the number has more than 64 bits)"),
        ([("a.jpg", b"x"), ("a.json", b'{"label": 1e400}')], "train-0.tar/a.json holds no label"),
        ([], "holds no sample"),
    ],
)
def test_a_sample_that_is_none_is_named(shard_folder, tmp_path, members, message):
    write_tar(tmp_path / "train-0.tar", members)
    write_tar(tmp_path / "val-0.tar", samples([6]))
    assert message in refused(tmp_path)


def test_a_label_that_training_lacks_is_refused(shard_folder):
    write_tar(shard_folder / "set-validation-00.tar", samples([6], label=lambda number: 7))
    assert refused(shard_folder).endswith("has label 7, outside 0 … 1 of the 2 classes; 1 of 1 labels are")


@pytest.mark.parametrize("label", [10**6, 2 * 10**9, 2**63 - 1])
def test_a_number_that_is_no_label_is_refused_before_its_classes_are_counted_out(shard_folder, label):
    shard = write_tar(shard_folder / "set-train-0001.tar", samples([3, 4], label=lambda number: label))
    assert refused(shard_folder) == (
        f"{shard}/000003.jpg has label {label}, but classes without names are numbers below 1,000,000; "
        "2 of 5 labels are not: mend or remove the sample"
    )


def test_class_names_that_occur_twice_are_refused(shard_folder):
    (shard_folder / "classes.txt").write_text("crane\ncrane\n")
    assert "classes.txt names 1 class (crane) more than once" in refused(shard_folder)


def test_one_split_alone_is_refused(shard_folder):
    (shard_folder / "set-validation-00.tar").unlink()
    assert "has training images only: add files with val or valid or validation or test" in refused(shard_folder)


def test_a_million_samples_take_arrays_and_not_objects(shard_folder):
    """Of lists there is one of the shards and one of the classes; what is kept of a sample is numbers in arrays."""
    train, _ = open_dataset(str(shard_folder))
    held = vars(train)
    assert {name for name, value in held.items() if isinstance(value, list)} == {"_shards", "classes"}
    assert (len(train._shards), len(train.classes)) == (2, 2)
    assert {type(value) for value in held.values()} == {str, list, np.ndarray, shards.ShardIndex}
    arrays = [train.labels, *train._index[:-1], *vars(train._index.names).values()]
    assert {type(value) for value in arrays} == {np.ndarray}
    assert {value.dtype.kind for value in arrays} <= {"i", "u"}
    assert type(train._index.names) is shards.Names
