"""Train a classifier, distilled or not: one loop, read from top to bottom.

    python -m deit_fast.train                                     photographs: a few minutes on a laptop's CPU
    python -m deit_fast.train --data /flowers                     your own classes: the folder decides what fits it
    python -m deit_fast.train --recipe deit --data /imagenet      DeiT-S distilled from RegNetY-16GF, every visible GPU
    python -m deit_fast.train --recipe teacher --data /flowers    a ConvNet for your own classes, to distil from
    torchrun --nproc-per-node 2 -m deit_fast.train --data digits  two processes, on CPUs too

The same command continues an unfinished run from its last checkpoint, bit for bit, and prints the table of a finished
one. Exit codes: 0 done, 2 a mistake in the command or the data, 3 diverged, 4 another process was killed,
75 preempted (run it again), 130 Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import command
from ..ranks.launch import one_process_per_gpu
from ..recipes.named import parse
from ..teacher.own import Own
from ..tools.report.page import write_missing
from .loop import train


@command.entry("train")
def main(arguments: Sequence[str]) -> int | None:
    own = Own()
    config = parse(arguments, __doc__, fit=own)
    logs = config.run_folder() / "logs"
    code = one_process_per_gpu(config.run.gpus, config.check, arguments, logs, "deit_fast.train")
    if code is None:
        own.tell(config)
        write_missing(train(config).finished, html=config.run.report)
    return code


if __name__ == "__main__":
    command.leave(main())
