"""Tests in a folder called `interpreter` run the Triton kernels on the CPU, and are collected if TRITON_INTERPRET=1.

Triton decides for its interpreter when it is imported, so one process cannot do both: `test_interpreter.py` runs those
folders in processes of their own.
"""

import os
from pathlib import Path


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if collection_path.name == "interpreter" and os.environ.get("TRITON_INTERPRET") != "1" else None
