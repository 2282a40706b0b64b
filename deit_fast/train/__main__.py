"""Train a classifier, distilled or not: one loop, read from top to bottom.

    python -m deit_fast.train                                     the demo: a few minutes on a laptop's CPU
    python -m deit_fast.train --data /imagenet                    DeiT-S distilled from RegNetY-16GF, every visible GPU
    python -m deit_fast.train --recipe teacher --data /flowers    a ConvNet for your own classes, to distil from
    torchrun --nproc-per-node 2 -m deit_fast.train --data digits  two processes, on CPUs too

The same command continues an unfinished run from its last checkpoint, bit for bit, and prints the table of a finished
one. Exit codes: 0 done, 2 a mistake in the command or the data, 3 diverged, 4 another process was killed,
75 preempted (run it again), 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch

from .. import command
from ..data import BadImage
from ..ranks.heartbeat import RankLost
from ..ranks.launch import LAUNCHED, launch
from ..ranks.preemption import Preempted
from ..ranks.slurm import adopt_slurm
from ..recipes.named import parse
from .loop import train
from .record import Diverged


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        config = parse(arguments, __doc__)
        if "RANK" not in os.environ and not adopt_slurm(os.environ):
            config.check()
            visible = torch.cuda.device_count()
            if config.gpus > visible:
                raise ValueError(f"--gpus {config.gpus}: {visible} visible here; leave --gpus out to use what there is")
            if (processes := config.gpus or visible) > 1:
                return launch(arguments, processes, config.run_folder() / "logs")
        train(config)
        return command.DONE
    except (ValueError, OSError, Diverged, RankLost) as error:
        if os.environ.get("DEIT_FAST_TRACEBACK"):
            raise
        if isinstance(error, RankLost):
            if error.speaks and LAUNCHED not in os.environ:  # what our launcher has started, it names itself
                print(f"error: {error}", file=sys.stderr)
            return error.code
        # What every rank finds alike is said once; what one rank alone met (an image of its share), by that rank.
        if os.environ.get("RANK", "0") == "0" or isinstance(error, (BadImage, command.OfOneRank)):
            print(f"error: {error}", file=sys.stderr)
        return command.DIVERGED if isinstance(error, Diverged) else command.USAGE
    except Preempted as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(stopped, file=sys.stderr)
        return int(stopped.code)
    except KeyboardInterrupt:
        print("interrupted: the same command continues from the last checkpoint", file=sys.stderr)
        return command.INTERRUPTED


if __name__ == "__main__":
    command.leave(main())
