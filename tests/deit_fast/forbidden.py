"""Files and folders that may not be read: root, as whom tests may run, reads whatever a mode forbids."""

import builtins
import errno
import io
import os
from pathlib import Path

import pytest


def forbid(monkeypatch: pytest.MonkeyPatch, forbidden: Path) -> None:
    """Python opens and lists neither this path nor what lies below it; safetensors, which is not Python, still does."""

    def refuse(path: object) -> None:
        if isinstance(path, str | os.PathLike) and Path(path).absolute().is_relative_to(forbidden.absolute()):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (os, "listdir"), (os, "scandir")):
        real = getattr(module, name)

        def guarded(path=".", *arguments, real=real, **options):
            refuse(path)
            return real(path, *arguments, **options)

        monkeypatch.setattr(module, name, guarded)


def sentence(path: Path) -> str:
    return f"permission denied for {path}: let its owner type chmod -R a+rX {path}, or type another path"
