"""Files and folders that are whole or absent, whatever happens while they are written; and locks.

    write_json(run / "summary.json", scores)        # temporary name, fsync, rename, fsync of the folder
    write_folder(out, fill)                         # the same for all that `fill(temporary folder)` writes

A crash leaves the old file or the new one, and at worst a temporary one, `.NAME.….part`, which `remove_parts` removes.
Who may read them is what the umask says, whoever wrote them: safetensors makes its files readable by their owner only.

    with Lock(run / LOCK) as lock:
        lock.acquire()                  # as soon as the folder is there; ValueError names the process that has the lock
    with Lock(cache / "set.lock") as lock:
        lock.wait("unpacks set")        # then look again: the other process may have done it

One process, or one group of ranks, trains in a run folder at a time; one process at a time fills a folder of the cache,
and others wait.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shlex
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

LOCK = "lock"  # the file in a run folder
WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # errors of file systems that have no locks


def sync(path: Path) -> None:
    """Make a file's content durable, or a folder's entries: a rename is not, until its folder is synced."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Create or replace `path` as a whole: `write` fills a temporary file, which is synced and renamed.

    Not `durable`: whole also after a crash of the process, but not of the machine. After an error the old file stays.
    """
    temporary = _temporary(path)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        temporary.unlink()
        write(temporary)
        temporary.chmod(mode)
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # of a file system that vanished: the error to raise is the first one
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def write_folder(folder: Path, fill: Callable[[Path], object], *, replace: bool = False) -> None:
    """Create `folder` as a whole: `fill` fills a temporary folder, which is synced with all it holds and renamed.

    A folder of this name that is not empty raises OSError; with `replace` it becomes `.NAME.old`, for the caller to
    remove. After an error nothing that `fill` wrote is left.
    """
    temporary = _temporary(folder)
    temporary.mkdir(parents=True)
    mode = temporary.stat().st_mode & 0o666
    try:
        fill(temporary)
        entries = [*temporary.rglob("*"), temporary]
        for file in filter(Path.is_file, entries):
            file.chmod(mode)
        # Flushes that wait together share one commit of the file system's journal: 0.2 s for 1800 photos, not 2 to 6.
        with ThreadPoolExecutor(min(16, 1 + len(entries) // 16)) as pool:
            list(pool.map(sync, entries))
        if replace and folder.exists():
            os.replace(folder, folder.with_name(f".{folder.name}.old"))
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(folder.parent)


def _temporary(path: Path) -> Path:
    """A name beside `path` that no thread, process or machine uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")


def remove_parts(folder: Path) -> None:
    """Remove the temporary files of writers that were killed."""
    for stray in folder.glob(".*.part"):
        stray.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_file(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))


def read_json(path: Path) -> Any:
    """The value in a JSON file; ValueError names a file that is missing, unreadable or not JSON; PermissionError."""
    try:
        return json.loads(path.read_text())
    except PermissionError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8
        raise ValueError(f"{path} is damaged, it is not JSON ({error})") from error


def check_readable(path: Path) -> None:
    """Raise the OSError that says why a file cannot be read: safetensors says of each that it does not exist."""
    open(path, "rb").close()


@contextlib.contextmanager
def reading_tensors(path: Path, advice: str) -> Iterator[None]:
    """While a safetensors file is read: if it is cut off, damaged or missing, ValueError says so and ends in `advice`.

    PermissionError: it may be whole.
    """
    from safetensors import SafetensorError  # here: a command starts without waiting for it

    try:
        check_readable(path)
        yield
    except PermissionError:
        raise
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is cut off or damaged ({error}): {advice}") from error


def shown(name: str) -> str:
    """A file's name for people and for files of text: a byte that is not UTF-8 becomes four characters, as \\xe9."""
    return os.fsencode(name).decode(errors="backslashreplace")


def denied(path: str | os.PathLike[str]) -> str:
    """The sentence for a file or folder that this user may not read or write; its advice is for what closes it."""
    closed = next((parent for parent in reversed(Path(path).parents) if not os.access(parent, os.X_OK)), path)
    advice = f"let its owner type chmod -R a+rX {shlex.quote(str(closed))}, or type another path"
    return f"permission denied for {path}: {advice}"


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes; OSError if it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Busy(ValueError):
    """Another process has the lock."""


class Lock:
    """The kernel's lock on a file (flock), which is created where it is missing, and stays.

    It is held from `acquire` or `wait` to the end of the context, or of the process, however that ends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1  # not open

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def acquire(self) -> None:
        """Take the lock, unless this object has it; the file names this process. Rank 0 holds it for all ranks.

        Busy names another process that has it; OSError: the folder cannot be written to.
        """
        if self._descriptor >= 0:
            return
        if not self._take("start one process only"):
            holder = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            self.__exit__()
            raise Busy(f"{self._path.parent} is being trained by {holder}: wait for it, stop it, or type another --out")
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def wait(self, what: str) -> None:
        """Take the lock. If another process has it, print "another process `what`" to standard error and wait."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            free = self._take("start one process first")
        except OSError as error:
            raise ValueError(
                f"cannot write to {self._path.parent} ({error.strerror}): "
                "set DEIT_FAST_CACHE to a folder that you may write to"
            ) from error
        if not free:
            print(f"another process {what}: waiting for it ({self._path})", file=sys.stderr)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def _take(self, advice: str) -> bool:
        """Open the file; False if another process has its lock. `advice` is for a file system without locks."""
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                self.__exit__()
                raise
            logger.warning(f"{self._path.parent} is on a file system without locks: {advice}")
        return True


def check_writable(path: Path, advice: str, *, folder: bool = False) -> None:
    """Raise ValueError, ending in `advice`, if a path cannot be written, before the work whose result goes there.

    A `folder` is made with those above it; a file needs a folder that exists.
    """
    whole = path.absolute()
    nearest = next(parent for parent in ((whole, *whole.parents) if folder else whole.parents) if parent.exists())
    if not folder and whole.is_dir():
        reason = "it is a folder"
    elif not folder and nearest != whole.parent:
        reason = f"there is no folder {whole.parent}"
    elif not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = f"{nearest} is not a folder that you may write to"
    elif folder and shown(str(whole)) != str(whole):
        reason = "safetensors writes to no path that is not UTF-8"
    else:
        return
    raise ValueError(f"{shown(str(path))} cannot be written ({reason}): {advice}")
