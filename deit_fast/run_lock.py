"""One process, or one group of ranks, trains in a run folder at a time.

    with RunLock(run) as lock:
        lock.acquire()          # as soon as the folder is there; ValueError names who holds it

The lock is the kernel's (flock on `runs/NAME/lock`), so it ends with its process, however that ends; the file stays.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path

logger = logging.getLogger(__name__)

NAME = "lock"


class RunLock:
    """Held from `acquire` to the end of the context; rank 0 holds it for all ranks."""

    def __init__(self, run: Path) -> None:
        self._path = run / NAME
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
