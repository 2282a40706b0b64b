"""A program of two ranks with a mesh of CPUs."""

import os
import subprocess
import sys
from pathlib import Path

HEADER = """
import torch, torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
import deit_kernels

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
"""


def run(program: str, folder: Path, **variables: str) -> None:
    """Run the lines after `HEADER` to their end on both ranks."""
    file = folder / "two_ranks.py"
    file.write_text(f'{HEADER}{program}\nprint("done")\n')
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", file]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("done") == 2, done.stderr[-3000:]
