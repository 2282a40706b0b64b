"""What `check` found, by file."""

import os

from deit_fast.data.check import check
from deit_fast.data.sources.open import open_unpacked


def by_file(found):
    return {os.path.basename(name): what for name, what in found}


def checked(source):
    """What is broken, by file name, and how many images were read."""
    broken = []
    report = check(open_unpacked(str(source), broken), threads=1)
    return by_file(broken + report.broken), report.images
