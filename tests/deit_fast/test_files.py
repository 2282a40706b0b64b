"""A file or a folder is whole or absent, whatever ends its writer; what cannot be written is refused before."""

import errno
import os
import signal
import stat
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deit_fast import command, files
from deit_fast.files import (
    LOCK,
    Lock,
    check_readable,
    check_writable,
    read_json,
    reading_tensors,
    remove_parts,
    write_file,
    write_folder,
    write_json,
)
from tests.deit_fast.forbidden import forbid, sentence

CALLS = ("open", "fsync", "replace", "mkdir")  # of os


def instead(monkeypatch: pytest.MonkeyPatch, number: int, do) -> list[str]:
    """Count these calls to the disk, and do something else in place of one."""
    done: list[str] = []
    for name in CALLS:
        real = getattr(os, name)

        def counted(*arguments, real=real, name=name, **options):
            done.append(name)
            return do() if len(done) - 1 == number else real(*arguments, **options)

        monkeypatch.setattr(os, name, counted)
    return done


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill(folder: Path) -> None:
    (folder / "sub").mkdir()
    for name in ("a", "sub/b"):
        (folder / name).write_text("new")


def write_new_file(path: Path) -> None:
    write_file(path, lambda temporary: temporary.write_text("new"))


def write_new_folder(path: Path) -> None:
    write_folder(path, fill)


def content(path: Path) -> dict[str, str]:
    """Every visible file under a path."""
    if path.is_file():
        return {"": path.read_text()}
    return {str(file.relative_to(path)): file.read_text() for file in sorted(path.rglob("*")) if file.is_file()}


FILE = (write_new_file, {"": "new"})

FOLDER = (write_new_folder, {"a": "new", "sub/b": "new"})


@pytest.mark.parametrize(("write", "whole"), [FILE, FOLDER])
def test_whichever_call_to_the_disk_fails_it_is_whole_or_absent_and_nothing_else_is_left(
    tmp_path, monkeypatch, write, whole
) -> None:
    with monkeypatch.context() as patch:
        calls = instead(patch, -1, full)
        write(tmp_path / "counted")
    assert {"open", "fsync", "replace"} <= set(calls)
    found = []
    for number in range(len(calls)):
        parent = tmp_path / f"failing_at_{number}"
        parent.mkdir()
        with monkeypatch.context() as patch:
            instead(patch, number, full)
            with pytest.raises(OSError, match="No space left"):
                write(parent / "it")
        found.append(content(parent / "it"))
        assert [path.name for path in parent.iterdir()] in ([], ["it"])
    assert all(each in ({}, whole) for each in found)
    assert found[0] == {} and found[-1] == whole, "the last call makes the rename durable"


@pytest.mark.parametrize(("write", "whole"), [FILE, FOLDER])
def test_a_kill_at_any_call_leaves_it_whole_or_absent_and_the_next_writer_succeeds(
    tmp_path, monkeypatch, write, whole
) -> None:
    found, code, number = [], None, 0
    while code != 0:
        path = tmp_path / f"killed_at_{number}" / "it"
        path.parent.mkdir()
        if (child := os.fork()) == 0:
            instead(monkeypatch, number, killed)
            write(path)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        found.append(content(path))
        if not path.exists():
            write(path)
        assert content(path) == whole
        number += 1
    assert number > 4 and {} in found and all(each in ({}, whole) for each in found)


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_who_may_read_a_file_is_what_the_umask_says_whoever_wrote_it(tmp_path, umask: int) -> None:
    def write(path: Path) -> None:
        save_file({"weight": torch.zeros(3)}, path)
        assert mode(path) == 0o600, "as safetensors makes it; else there is nothing to do"

    def fill_both(folder: Path) -> None:
        fill(folder)
        write(folder / "sub" / "model.safetensors")

    write_file(tmp_path / "it.safetensors", write)
    write_folder(tmp_path / "folder", fill_both)
    with Lock(tmp_path / LOCK) as lock:
        lock.acquire()
    found = sorted(tmp_path.rglob("*"))
    assert len(found) == 7
    assert all(mode(path) == (0o777 if path.is_dir() else 0o666) & ~umask for path in found)


def test_a_file_that_may_not_be_read_is_said_to_be_one(tmp_path, monkeypatch) -> None:
    write_json(tmp_path / "data.json", {})
    forbid(monkeypatch, tmp_path)
    for read in (read_json, check_readable):
        with pytest.raises(PermissionError) as denial:
            read(tmp_path / "data.json")
        assert command.sentence(denial.value) == sentence(tmp_path / "data.json")


def test_the_advice_is_for_the_folder_that_is_closed(tmp_path, monkeypatch) -> None:
    file = tmp_path / "a run" / "checkpoints" / "model.safetensors"
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name not in ("a run", "checkpoints"))
    assert files.denied(file).endswith(f"let its owner type chmod -R a+rX '{tmp_path}/a run', or type another path")


def test_the_old_file_stays_when_the_writer_fails(tmp_path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"top1": 80.0})

    def interrupted(temporary: Path) -> None:
        temporary.write_text("{")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(path, interrupted)
    assert read_json(path) == {"top1": 80.0}
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_made_no_file_is_an_error_and_the_old_one_stays(tmp_path) -> None:
    path = tmp_path / "it"
    write_new_file(path)
    with pytest.raises(FileNotFoundError):
        write_file(path, lambda temporary: None)
    assert content(path) == {"": "new"}


def test_the_error_of_the_writer_is_raised_also_when_the_file_system_has_vanished(tmp_path, monkeypatch) -> None:
    def gone(temporary: Path) -> None:
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EIO, "second")))
        raise OSError(errno.EIO, "first")

    with pytest.raises(OSError, match="first"):
        write_file(tmp_path / "it", gone)


def test_everything_in_a_folder_and_the_rename_are_durable(tmp_path, monkeypatch) -> None:
    events, fsync, replace = [], os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("rename"), replace(*names)))
    write_new_folder(tmp_path / "it")
    synced = events[: events.index("rename")]
    assert sorted(name for name in synced if not name.endswith(".part")) == ["a", "b", "sub"]
    assert sum(name.startswith(".it.") for name in synced) == 1
    assert events[events.index("rename") :] == ["rename", tmp_path.name]


def test_what_need_not_survive_the_machine_is_not_synced(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda *_: pytest.fail("synced"))
    write_file(tmp_path / "it", lambda temporary: temporary.write_text("new"), durable=False)
    assert content(tmp_path / "it") == {"": "new"}


def test_a_folder_that_is_there_is_kept_unless_it_is_empty_or_may_be_replaced(tmp_path) -> None:
    path = tmp_path / "it"
    path.mkdir()
    write_new_folder(path)
    (path / "mine").write_text("old")
    with pytest.raises(OSError, match="not empty"):
        write_new_folder(path)
    assert content(path) == FOLDER[1] | {"mine": "old"}
    assert list(tmp_path.iterdir()) == [path]
    write_folder(path, fill, replace=True)
    assert content(path) == FOLDER[1]
    assert content(tmp_path / ".it.old") == FOLDER[1] | {"mine": "old"}


def test_writers_at_the_same_time_do_not_meet(tmp_path) -> None:
    """Threads of one process, or processes of two machines with one number, on one file."""
    path, both = tmp_path / "it", threading.Barrier(2)

    def write(text: str) -> None:
        def slowly(temporary: Path) -> None:
            with open(temporary, "x") as file:
                both.wait(30)
                file.write(text)

        write_file(path, slowly)

    threads = [threading.Thread(target=write, args=(text * 1000,)) for text in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in ("a" * 1000, "b" * 1000)
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_files_of_killed_writers_are_removed_and_nothing_else(tmp_path) -> None:
    for name in (".summary.json.123.part", ".it.0f.part"):
        (tmp_path / name).write_text("half")
    (tmp_path / "chapter.part").write_text("mine")
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["chapter.part"]


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_or_missing_json_file_is_named(tmp_path, data: bytes) -> None:
    path = tmp_path / "data.json"
    with pytest.raises(ValueError, match=rf"{path} cannot be read \(No such file"):
        read_json(path)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path} is damaged, it is not JSON"):
        read_json(path)


def test_a_damaged_tensor_file_is_one_sentence_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(100)}, path)
    os.truncate(path, 200)
    for missing in (False, True):
        with pytest.raises(ValueError) as refused, reading_tensors(path, "copy it again"):
            load_file(path)
        assert str(refused.value).startswith(f"{path} is cut off or damaged (")
        assert str(refused.value).endswith("): copy it again")
        assert missing == ("No such file" in str(refused.value))
        path.unlink(missing_ok=True)


def test_a_new_file_an_old_file_and_a_folder_of_new_folders_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    check_writable(tmp_path / "new.json", "type another")
    check_writable(tmp_path / "old.json", "type another")
    check_writable(tmp_path, "type another", folder=True)
    check_writable(tmp_path / "a" / "b", "type another", folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"], "nothing is made"


@pytest.mark.parametrize(
    ("path", "folder", "reason"),
    [
        ("", False, "it is a folder"),
        ("no/a.json", False, "there is no folder {root}/no"),
        ("file/a.json", False, "{root}/file is not a folder that you may write to"),
        ("file", True, "{root}/file is not a folder that you may write to"),
        ("file/run/a", True, "{root}/file is not a folder that you may write to"),
        ("locked/run", True, "{root}/locked is not a folder that you may write to"),
    ],
)
def test_the_reason_is_named(tmp_path: Path, path: str, folder: bool, reason: str, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir()
    # Root may write everywhere, so the folder's mode does not count in a container.
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "locked")
    with pytest.raises(ValueError) as refused:
        check_writable(tmp_path / path, "type another --out", folder=folder)
    expected = f"{tmp_path / path} cannot be written ({reason.format(root=tmp_path)}): type another --out"
    assert str(refused.value) == expected
