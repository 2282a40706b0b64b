"""`check` names every broken shard and parquet file, and reads the others."""

import re
import sys
from types import SimpleNamespace

import pytest

from deit_fast.data import open_dataset
from deit_fast.data.sources.open import open_unpacked
from deit_fast.tools.data.__main__ import main
from deit_fast.tools.data.pack import pack
from tests.deit_fast.data.memory_dataset import encoded_image
from tests.deit_fast.forbidden import forbid, sentence
from tests.deit_fast.tools.data.check_cases import checked


@pytest.fixture
def packed_folder(image_folder, tmp_path):
    """Four training shards of two images each and two of validation, without an index."""
    folder = tmp_path / "packed"
    pack(open_unpacked(str(image_folder)), folder, shard_images=2)
    for index in folder.glob("*.npz"):
        index.unlink()
    (folder / "pack.json").unlink()
    return folder


def test_broken_shards_are_all_named_and_the_others_are_read(packed_folder):
    shards = [packed_folder / f"train-0000{number}.tar" for number in range(4)]
    shards[0].write_bytes(shards[0].read_bytes()[:700])
    shards[1].write_bytes(b"not a tar file" * 100)
    shards[2].unlink()
    shards[2].symlink_to("nowhere.tar")
    broken, images = checked(packed_folder)
    assert set(broken) == {shard.name for shard in shards[:3]}
    assert broken["train-00000.tar"] == "is not a readable tar file (unexpected end of data): copy or download it again"
    assert "No such file" in broken["train-00002.tar"]
    assert images == 6


def test_a_shard_that_may_not_be_read_is_not_called_damaged(packed_folder, monkeypatch):
    shard = packed_folder / "train-00001.tar"
    forbid(monkeypatch, shard)
    assert checked(packed_folder) == ({shard.name: sentence(shard)}, 10)
    with pytest.raises(ValueError, match=re.escape(sentence(shard))):
        open_dataset(str(packed_folder))


def test_an_index_that_may_not_be_read_is_not_called_damaged(image_folder, tmp_path, monkeypatch):
    pack(open_unpacked(str(image_folder)), tmp_path / "packed", shard_images=2)
    index = tmp_path / "packed" / "train.index.npz"
    forbid(monkeypatch, index)
    assert checked(tmp_path / "packed") == ({index.name: sentence(index)}, 12)
    with pytest.raises(ValueError, match=re.escape(sentence(index))):
        open_dataset(str(tmp_path / "packed"))


def test_a_split_of_which_no_shard_can_be_read_is_named_and_the_other_is_read(packed_folder):
    for shard in packed_folder.glob("train-*.tar"):
        shard.write_bytes(shard.read_bytes()[:700])
    broken, images = checked(packed_folder)
    assert set(broken) == {f"train-0000{number}.tar" for number in range(4)}
    assert images == 4


def test_classes_that_only_a_broken_shard_numbers_are_no_complaint_about_validation(packed_folder):
    (packed_folder / "classes.txt").unlink()
    for number in (2, 3):  # all of class 1
        (packed_folder / f"train-0000{number}.tar").write_bytes(b"")
    assert set(checked(packed_folder)[0]) == {"train-00002.tar", "train-00003.tar"}


def test_labels_without_a_class_are_named_by_their_samples_and_the_images_are_read(packed_folder):
    (packed_folder / "classes.txt").write_text("ant\n")
    broken, images = checked(packed_folder)
    assert len(broken) == 4 + 2  # images of the bees, by their own names
    assert broken["00000004-0.jpg"] == "label 1, outside 0 … 0 of the 1 classes"
    assert images == 12


def test_a_packed_set_with_a_broken_shard_names_the_shard_and_its_index(image_folder, tmp_path):
    folder = tmp_path / "packed"
    pack(open_unpacked(str(image_folder)), folder, shard_images=2)
    (folder / "train-00001.tar").write_bytes((folder / "train-00001.tar").read_bytes()[:700])
    broken, images = checked(folder)
    assert set(broken) == {"train.index.npz", "train-00001.tar"}
    assert "are not those that it lists" in broken["train.index.npz"]
    assert images == 10


@pytest.fixture
def parquet_folder(tmp_path):
    """Three training files of two rows and one of validation, with classes of no name."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(name, numbers, **columns):
        rows = {"image": [encoded_image(number, "JPEG") for number in numbers], "label": [0, 1], **columns}
        parquet.write_table(pyarrow.table(rows), tmp_path / f"{name}.parquet")

    for number in range(3):
        write(f"train-{number}", [2 * number, 2 * number + 1])
    write("test-0", [6, 7])
    return SimpleNamespace(path=tmp_path, write=write)


def test_broken_parquet_files_are_all_named_and_the_others_are_read(parquet_folder):
    (parquet_folder.path / "train-0.parquet").write_bytes(b"PAR1")
    parquet_folder.write("train-2", [4, 5], label=[0, None])
    broken, images = checked(parquet_folder.path)
    assert set(broken) == {"train-0.parquet", "train-2.parquet"}
    assert broken["train-0.parquet"].startswith("is not a readable parquet file")
    assert broken["train-2.parquet"] == "has 1 rows without a value of 'label'"
    assert images == 4


def test_a_parquet_file_that_may_not_be_read_is_not_called_damaged(parquet_folder, monkeypatch):
    from pyarrow import parquet

    file, opened = parquet_folder.path / "train-1.parquet", parquet.ParquetFile

    def denied(path):
        if path == str(file):
            raise PermissionError(13, f"Failed to open local file '{path}'. Detail: [errno 13] Permission denied")
        return opened(path)

    monkeypatch.setattr(parquet, "ParquetFile", denied)
    assert checked(parquet_folder.path) == ({file.name: sentence(file)}, 6)


def test_a_first_parquet_file_of_other_columns_is_named_and_the_others_are_read(parquet_folder):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"age": [1.5]}), parquet_folder.path / "train-0.parquet")
    broken, images = checked(parquet_folder.path)
    assert set(broken) == {"train-0.parquet"} and "has no column" in broken["train-0.parquet"]
    assert images == 6


def test_parquet_files_of_which_none_can_be_read_are_all_named(parquet_folder):
    parquet_folder.write("test-0", [6, 7], label=[0, None])
    for file in parquet_folder.path.glob("train-*.parquet"):
        file.write_bytes(b"PAR1")
    assert len(checked(parquet_folder.path)[0]) == 4
    (parquet_folder.path / "test-0.parquet").write_bytes(b"")
    assert len(checked(parquet_folder.path)[0]) == 4


def test_a_number_that_is_no_label_is_named_by_its_row(parquet_folder):
    parquet_folder.write("train-1", [2, 3], label=[1, 2 * 10**9])
    broken, images = checked(parquet_folder.path)
    assert broken == {"train-1.parquet[1]": "label 2000000000, outside 0 … 1 of the 2 classes"}
    assert images == 8


def test_check_exits_with_1_where_a_shard_is_broken(packed_folder, capsys):
    for number in (1, 3):
        (packed_folder / f"train-0000{number}.tar").write_bytes(b"")
    assert main(["check", str(packed_folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    named = [line for line in lines if line.startswith("broken: ")]
    assert [line.split(": ")[1] for line in named] == [f"{packed_folder}/train-0000{number}.tar" for number in (1, 3)]
    assert lines[-1].startswith("8 images: 2 broken, 0 odd, ")


def test_check_exits_with_2_where_the_spec_names_a_column_that_is_not_there(parquet_folder, capsys):
    assert main(["check", f"{parquet_folder.path}?label=age"]) == 2
    assert "has no column 'age', only image, label" in capsys.readouterr().err


def test_check_exits_with_2_where_no_number_of_a_column_is_a_label(parquet_folder, capsys):
    for number in range(3):
        parquet_folder.write(f"train-{number}", [0, 1], taken=[1_700_000_000 + number] * 2)
    assert main(["check", f"{parquet_folder.path}?label=taken"]) == 2
    assert "name the column of labels" in capsys.readouterr().err


def test_check_exits_with_2_without_pyarrow(parquet_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["check", str(parquet_folder.path)]) == 2
    assert "type pip install 'deit-fast[parquet]'" in capsys.readouterr().err
