"""A lock names its holder, or waits for it."""

import errno
import fcntl
import io
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from deit_fast import files
from deit_fast.files import (
    LOCK,
    Lock,
)

HOLDER = (
    "import sys; from pathlib import Path; from deit_fast.files import Lock\n"
    "with Lock(Path(sys.argv[1])) as lock:\n"
    "    lock.acquire() if sys.argv[2] == 'acquire' else lock.wait('holds it')\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


@pytest.fixture
def holder(tmp_path: Path):
    """Starts another process that holds the lock."""
    with ExitStack() as running:

        def start(how: str) -> subprocess.Popen:
            command = [sys.executable, "-c", HOLDER, str(tmp_path / LOCK), how]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            process = running.enter_context(subprocess.Popen(command, env=environment, **pipes))
            running.callback(process.kill)
            assert process.stdout.readline() == "held\n"
            return process

        yield start


def test_a_lock_that_is_held_is_refused_at_once_and_its_holder_named(tmp_path, holder) -> None:
    other = holder("acquire")
    with Lock(tmp_path / LOCK) as lock:
        for _ in range(2):
            with pytest.raises(
                ValueError, match=f"{tmp_path} is being trained by process {other.pid} on .*another --out"
            ):
                lock.acquire()
        other.kill()
        other.wait()
        lock.acquire()  # the kernel took it back, however its holder ended
        lock.acquire()  # has it already
    assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_is_waited_for_and_a_sentence_says_so(tmp_path, holder, monkeypatch) -> None:
    other, got = holder("wait"), []
    said = io.StringIO()  # capfd loses what is printed while it is read
    monkeypatch.setattr(sys, "stderr", said)

    def second() -> None:
        with Lock(tmp_path / LOCK) as lock:
            lock.wait("unpacks flowers")
            got.append(True)

    thread = threading.Thread(target=second)
    thread.start()
    deadline = time.monotonic() + 30
    while not said.getvalue().endswith("\n") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert said.getvalue() == f"another process unpacks flowers: waiting for it ({tmp_path / LOCK})\n"
    assert got == []
    other.kill()
    thread.join(30)
    assert got == [True] and (tmp_path / LOCK).read_bytes() == b""


def test_a_lock_that_is_free_is_waited_for_silently_in_a_folder_that_is_made(tmp_path, capfd) -> None:
    path = tmp_path / "new" / "set.lock"
    with Lock(path) as lock:
        lock.wait("unpacks flowers")
        with Lock(path) as other, pytest.raises(ValueError, match="is being trained by another process"):
            other.acquire()
    with Lock(path) as lock:
        lock.acquire()
    assert capfd.readouterr().err == ""


def test_a_folder_that_cannot_be_written_to_is_named_with_the_way_out(tmp_path) -> None:
    (tmp_path / "file").touch()
    with Lock(tmp_path / "file" / LOCK) as lock:
        with pytest.raises(ValueError, match=f"cannot write to {tmp_path}/file .* set DEIT_FAST_CACHE to a folder"):
            lock.wait("unpacks flowers")
        with pytest.raises(OSError):
            lock.acquire()


@pytest.mark.parametrize("code", files.WITHOUT_LOCKS)
@pytest.mark.parametrize(("take", "advice"), [("acquire", "only"), ("wait", "first")])
def test_a_file_system_without_locks_is_a_warning(
    tmp_path, monkeypatch, caplog, code: int, take: str, advice: str
) -> None:
    def no_locks(*_arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with Lock(tmp_path / LOCK) as lock:
        lock.acquire() if take == "acquire" else lock.wait("unpacks flowers")
    assert caplog.messages == [f"{tmp_path} is on a file system without locks: start one process {advice}"]


def test_another_error_of_the_lock_does_not_count_as_holding_it(tmp_path, monkeypatch) -> None:
    def broken(*_arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with Lock(tmp_path / LOCK) as lock:
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                lock.acquire()
