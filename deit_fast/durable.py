"""Files that are whole or absent, whatever happens while they are written.

    write_json(run / "summary.json", scores)        # temporary name, fsync, rename, fsync of the folder

A crash leaves the old file, or the new one, and at worst a stray `.NAME.PID.part`, which `remove_parts` takes away.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


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
