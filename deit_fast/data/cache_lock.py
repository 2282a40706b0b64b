"""One process at a time fills a folder of the cache; others wait and find it full.

    with locked(cache / "set.lock", "unpacks set"):
        ...                     # look again: another process may have done it

The lock is the kernel's, as that of a run folder (`run_lock.py`), so it ends with its process; the file stays.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
