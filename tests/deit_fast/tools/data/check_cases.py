"""What `check` found, by file."""

import os

from deit_fast.tools.data.check import check
from deit_fast.tools.data.parts import open_parts


def by_file(found):
    return {os.path.basename(name): what for name, what in found}


def checked(source):
    """What is broken, by file name, and how many images were read."""
    splits, broken = open_parts(str(source))
    report = check(splits, threads=1, broken=broken)
    return by_file(report.broken), report.images
