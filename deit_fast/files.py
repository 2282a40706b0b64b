"""Files that are whole or absent, whatever happens while they are written.

    write_json(run / "summary.json", scores)        # temporary name, fsync, rename, fsync of the folder

A crash leaves the old file, or the new one, and at worst a stray `.NAME.PID.part`, which `remove_parts` takes away.

    with RunLock(run) as lock:
        lock.acquire()          # as soon as the folder is there; ValueError names who holds it
    with locked(cache / "set.lock", "unpacks set"):
        ...                     # look again: another process may have done it

One process, or one group of ranks, trains in a run folder at a time; one process at a time fills a folder of the cache,
and others wait. Both locks are the kernel's (flock), so they end with their process, however that ends; the file stays.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def sync_folder(folder: Path) -> None:
    """Make the folder's own entries durable: a rename is not, until its folder is synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the file's content durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Create or replace `path` as a whole: `write` fills a temporary file, which is synced and renamed.

    Raises:
        OSError: what the disk says; the old file is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        sync_file(temporary)
        os.replace(temporary, path)
    except BaseException:
        _forget(temporary)
        raise
    sync_folder(path.parent)


def _forget(temporary: Path) -> None:
    try:
        temporary.unlink(missing_ok=True)
    except OSError:  # a file system that vanished: what made the caller fail is the error to tell
        pass


def write_json(path: Path, value: Any) -> None:
    write_file(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        ValueError: the file is missing, unreadable or not JSON; it is named.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8
        raise ValueError(f"{path} is damaged, it is not JSON ({error})") from error


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove_parts(folder: Path) -> None:
    """Take away the temporary files that writers left which were killed."""
    for stray in folder.glob(".*.part"):
        stray.unlink(missing_ok=True)


LOCK = "lock"


class RunLock:
    """Held from `acquire` to the end of the context; rank 0 holds it for all ranks."""

    def __init__(self, run: Path) -> None:
        self._path = run / LOCK
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def acquire(self) -> None:
        """Take the lock, unless this object has it.

        Raises:
            ValueError: another process has it; it is named.
            OSError: the folder cannot be written to.
        """
        if self._descriptor is not None:
            return
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                logger.warning(f"{self._path.parent} lies on a file system without locks: start one process only")
            else:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                raise ValueError(
                    f"{self._path.parent} is being trained by {holder}: wait for it, stop it, or type another --out"
                ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._descriptor = descriptor


WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # what file systems say that have none


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock on a file, which is created where it is missing. Whoever has to wait is told on standard error.

    Args:
        what: is done under the lock, to end the sentence "another process …".

    Raises:
        ValueError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ValueError(
            f"cannot write to {path.parent} ({error.strerror}): set DEIT_FAST_CACHE to a folder that you may write to"
        ) from error
    try:
        _wait(descriptor, path, what)
        yield
    finally:
        os.close(descriptor)


def _wait(descriptor: int, path: Path, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another process {what}: waiting for it ({path})", file=sys.stderr)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        warnings.warn(f"{path.parent} lies on a file system without locks: start one process first", stacklevel=4)


def check_writable(path: Path, advice: str, *, folder: bool = False) -> None:
    """Refuse a path that cannot be written, before the work whose result goes there is begun.

    Args:
        advice: what to type; it ends the sentence.
        folder: `path` is a folder, made with those above it; else it is a file in a folder that exists.

    Raises:
        ValueError: it cannot be written; says why.
    """
    whole = path.absolute()
    nearest = next(parent for parent in ((whole, *whole.parents) if folder else whole.parents) if parent.exists())
    if not folder and whole.is_dir():
        reason = "it is a folder"
    elif not folder and nearest != whole.parent:
        reason = f"there is no folder {whole.parent}"
    elif not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = f"{nearest} is not a folder that you may write to"
    else:
        return
    raise ValueError(f"{path} cannot be written ({reason}): {advice}")
