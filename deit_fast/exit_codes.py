"""What the exit code of `python -m deit_fast.train` means to a script, a scheduler or a launcher.

until python -m deit_fast.train --data /imagenet; do [ $? -eq 75 ] || break; done     # go on after a preemption
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

DONE = 0  # trained, or finished before
USAGE = 2  # a mistake in the command, the data, the run folder or its disk: one sentence says what to mend
DIVERGED = 3  # the numbers went bad: the same command would do so again
LOST = 4  # another process of the run was killed or cannot be reached: run the same command again
PREEMPTED = 75  # SIGTERM or SIGUSR1, the run is saved: run the same command again (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # Ctrl-C, as shells count it


class OfOneRank(ValueError):
    """A mistake that one rank may meet alone, so it says it itself; what all meet alike is said by rank 0."""


def leave(code: int) -> NoReturn:
    """End this process with a code.

    A rank that has failed ends without Python's and torch's tidying up. Threads of its process group, which nobody
    joins then, abort the process there now and again (gloo, torch 2.14), and for its code a signal would be reported.
    """
    if code and "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
