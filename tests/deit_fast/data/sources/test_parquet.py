"""Parquet files: bytes and labels as Hugging Face stores them, packed once so that any order is fast."""

import errno
import fcntl
import json
import sys
import threading
from threading import Event, Thread
from types import SimpleNamespace

import pytest

from deit_fast.data import open_dataset
from deit_fast.data.sources import open as sources
from deit_fast.data.sources.parquet import ParquetRows
from tests.deit_fast.data.memory_dataset import encoded_image

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path, numbers, *, image="image", label="label", names=("ant", "bee"), labels=None, features=True, **more):
    """Rows as `datasets` writes them: a struct of bytes and path, the features in the schema's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": encoded_image(number, "JPEG"), "path": f"{number}.jpg"} for number in numbers]
    columns = {image: rows, label: [number % 2 for number in numbers] if labels is None else labels, **more}
    table = pyarrow.table(columns)
    if features:
        told = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": told}})})
    parquet.write_table(table, path, row_group_size=2)
    return path


@pytest.fixture
def folder(tmp_path):
    """As the hub lays it out: two training files of three rows, one validation file, one test file without labels."""
    data = tmp_path / "set" / "data"
    write(data / "train-00000-of-00002.parquet", [0, 1, 2])
    write(data / "train-00001-of-00002.parquet", [3, 4, 5])
    write(data / "validation-00000-of-00001.parquet", [6, 7])
    write(data / "test-00000-of-00001.parquet", [8], labels=[-1])
    return tmp_path / "set"


def refused(spec) -> str:
    with pytest.raises(ValueError) as caught:
        open_dataset(str(spec))
    return str(caught.value)


def test_bytes_labels_and_names_are_those_of_the_files(folder, capsys):
    train, val = open_dataset(str(folder))
    assert train.classes == val.classes == ["ant", "bee"]
    assert train.labels.tolist() == [0, 1] * 3
    assert [train.read(index) for index in (5, 0, 3)] == [encoded_image(number, "JPEG") for number in (5, 0, 3)]
    assert [val.read(index) for index in range(len(val))] == [encoded_image(number, "JPEG") for number in (6, 7)]
    assert "unpacking" in capsys.readouterr().err


def test_a_second_opening_unpacks_nothing_and_a_changed_file_everything(folder, capsys):
    open_dataset(str(folder))
    capsys.readouterr()
    train, _ = open_dataset(str(folder))
    assert capsys.readouterr().err == ""
    assert train.read(1) == encoded_image(1, "JPEG")
    write(folder / "data/train-00001-of-00002.parquet", [9, 4, 5, 10])
    train, _ = open_dataset(str(folder))
    assert "unpacking" in capsys.readouterr().err
    assert len(train) == 7
    assert train.read(3) == encoded_image(9, "JPEG")


def test_another_spelling_of_the_folder_unpacks_nothing(folder, monkeypatch, capsys):
    """It would take the shards away from under a run."""
    open_dataset(str(folder))
    capsys.readouterr()
    monkeypatch.chdir(folder.parent)
    train, _ = open_dataset("set?label=label")
    assert capsys.readouterr().err == ""
    assert train.name == "set?label=label"


def test_of_two_that_open_at_once_one_unpacks_and_the_other_waits(folder, monkeypatch, capsys):
    waiting, opened, packed = Event(), [], []
    second = Thread(target=lambda: opened.append(open_dataset(str(folder))))
    flock, pack = fcntl.flock, sources.write_pack

    def watched_flock(descriptor, operation):
        if operation == fcntl.LOCK_EX:
            waiting.set()
        flock(descriptor, operation)

    def watched_pack(*arguments, **options):
        packed.append(threading.current_thread())
        if len(packed) == 1:
            second.start()
            assert waiting.wait(30)
        pack(*arguments, **options)

    monkeypatch.setattr(fcntl, "flock", watched_flock)
    monkeypatch.setattr(sources, "write_pack", watched_pack)
    opened.append(open_dataset(str(folder)))
    second.join()
    assert packed == [threading.current_thread()]
    assert [len(train) for train, _ in opened] == [6, 6]
    assert f"another process unpacks {folder}: waiting for it" in capsys.readouterr().err


def test_what_is_unpacked_opens_from_a_cache_that_cannot_be_written(folder, monkeypatch):
    open_dataset(str(folder))
    monkeypatch.setattr(sources, "Lock", None)
    assert len(open_dataset(str(folder))[0]) == 6


def test_where_the_cache_is_not_writable_a_sentence_says_so(folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEIT_FAST_CACHE", str(tmp_path / "file"))
    assert refused(folder).endswith("set DEIT_FAST_CACHE to a folder that you may write to")


def test_where_the_file_system_has_no_locks_a_warning_says_so_and_the_set_is_unpacked(folder, monkeypatch, caplog):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert len(open_dataset(str(folder))[0]) == 6
    assert "a file system without locks: start one process first" in caplog.text


def test_rows_are_read_from_the_files_themselves_where_order_does_not_matter(folder):
    files = sorted((folder / "data").glob("train*"))
    rows = ParquetRows(files, "set")
    assert [rows.read(index) for index in range(6)] == [encoded_image(number, "JPEG") for number in range(6)]
    assert rows.path(4) == f"{files[1]}[1]"


def test_columns_are_found_by_type_where_nothing_is_told(tmp_path):
    images = [encoded_image(number) for number in range(2)]
    for split in ("train", "test"):
        table = pyarrow.table({"picture": images, "species": [3, 0], "photographer": ["x", "y"]})
        parquet.write_table(table, tmp_path / f"{split}.parquet")
    train, val = open_dataset(str(tmp_path))
    assert train.classes == val.classes == ["0", "1", "2", "3"]
    assert train.labels.tolist() == [3, 0]
    assert train.read(1) == images[1]


def test_a_column_that_cannot_be_told_is_asked_for(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", [0, 1], image="img", label="fine", features=False, coarse=[0, 0])
    text = refused(tmp_path)
    assert "2 columns (fine, coarse) could be the label: name it, --data 'FOLDER?label=fine'" in text
    assert open_dataset(f"{tmp_path}?label=coarse")[0].labels.tolist() == [0, 0]
    assert open_dataset(f"{tmp_path}?label=fine&image=img")[0].labels.tolist() == [0, 1]
    assert "has no column 'age', only img, fine, coarse" in refused(f"{tmp_path}?label=age")
    assert "a spec names the columns image and label, not lable" in refused(f"{tmp_path}?lable=fine")


def test_labels_outside_the_classes_or_missing_are_refused(folder):
    train = folder / "data/train-00001-of-00002.parquet"
    write(train, [3, 4], labels=[0, 2])
    assert refused(folder).endswith("label 2, outside 0 … 1 of the 2 classes; 1 of 5 labels are")
    write(train, [3, 4], labels=[0, None])
    assert f"{train} has 1 rows without a value of 'label'" in refused(folder)
    write(train, [3, 4], names=["ant", "ant"])
    write(folder / "data/train-00000-of-00002.parquet", [3, 4], names=["ant", "ant"])
    assert "names 1 class (ant) more than once" in refused(folder)


def test_a_column_of_numbers_that_are_no_labels_is_refused_before_its_classes_are_counted_out(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", [0, 1], label="taken", labels=[5, 1_700_000_000], features=False)
    text = refused(tmp_path)
    assert text.startswith(f"{tmp_path}/train.parquet[1] has label 1700000000, but classes without names are numbers")
    assert text.endswith("1 of 2 labels are not: name the column of labels, --data 'FOLDER?label=COLUMN'")
    write(tmp_path / "train.parquet", [0, 1], labels=pyarrow.array([1, 2**63], pyarrow.uint64()))
    assert refused(tmp_path).startswith(
        f"{tmp_path}/train.parquet[1] has label {2**63}: labels are signed integers of 64 bits"
    )


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_later_file_without_a_column_is_named(folder, column):
    train = folder / "data/train-00001-of-00002.parquet"
    write(train, [3, 4], **{column: "other"})
    assert refused(folder).startswith(f"{train} has no column {column!r}, only ")


def test_a_column_that_a_file_has_twice_is_named(folder):
    train = folder / "data/train-00001-of-00002.parquet"
    table = parquet.read_table(write(train, [3, 4]))
    parquet.write_table(table.append_column("label", table.column("label")), train)
    assert f"{train} has no readable column 'label'" in refused(folder)


def test_a_file_that_loses_its_column_later_is_a_read_error_of_its_images(folder):
    train = folder / "data/train-00000-of-00002.parquet"
    rows = ParquetRows([train], "set")
    write(train, [0, 1, 2], image="other")
    with pytest.raises(OSError, match="row group 0 is damaged"):
        rows.read(0)


def test_a_broken_file_is_named(folder):
    train = folder / "data/train-00001-of-00002.parquet"
    train.write_bytes(train.read_bytes()[:-100])
    assert f"{train} is not a readable parquet file" in refused(folder)


def test_a_damaged_row_group_is_named_and_leaves_nothing_half_unpacked(folder, capsys):
    train = folder / "data/train-00000-of-00002.parquet"
    data = bytearray(train.read_bytes())
    data[4:40] = b"\xff" * 36  # the header of the first page
    train.write_bytes(data)
    assert f"{train}[0]: row group 0 is damaged" in refused(folder)
    assert f"{train}[0]: row group 0 is damaged" in refused(folder)


def test_without_space_the_way_out_is_told(folder, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    assert "set DEIT_FAST_CACHE to a folder on another disk" in refused(folder)


def test_without_pyarrow_the_pip_line_is_told(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refused(folder) == "parquet files need pyarrow: type pip install 'deit-fast[parquet]'"
