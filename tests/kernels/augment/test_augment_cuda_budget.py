"""What the CUDA kernels take of an SM: registers, spills, shared memory, held to `csrc/cuda/budget.json` on sm_90.

The compiler says it; no GPU is needed. A kernel that takes more fails here; one that takes less should lower its line.
"""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from augment_cases import ROOT
from setuptools.errors import CompileError

KERNEL = re.compile(r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>sm_\d+)'")
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
NAMES = {
    "resize_kernel": "resize", "plan_ops_kernel": "plan ops", "ops_kernel": "ops",
    "finish_kernelILNS_4TypeE0E": "finish float32", "finish_kernelILNS_4TypeE1E": "finish float16",
    "finish_kernelILNS_4TypeE2E": "finish bfloat16",
}  # fmt: skip


def compile_kernels(folder: Path, arch: int) -> dict[str, dict[str, int]]:
    """Resources by kernel, from the flags that setup.py builds with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", ["setup.py", "--name"])
        build = SimpleNamespace(**runpy.run_path("setup.py"))
    try:
        toolkit = build.find_toolkit()
    except CompileError as error:
        pytest.skip(str(error))
    nvcc = [f"{toolkit.home}/bin/nvcc", "-ccbin", build.compiler()[0], *build.NVCC_FLAGS, "-Xptxas=-v"]
    command = [*nvcc, f"-arch=sm_{arch}", "-c", ROOT / "csrc/cuda/augment.cu", "-o", folder / "kernels.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resources: dict[str, dict[str, int]] = {}
    for line in done.stderr.splitlines():
        if found := KERNEL.search(line):
            mangled = found["name"]
            name = next(ours for part, ours in sorted(NAMES.items(), key=lambda item: -len(item[0])) if part in mangled)
            resources[name] = {"stack": 0, "spilled": 0}
        elif found := SPILL.search(line):
            # A line for the kernel and one for each function that it calls.
            resources[name]["stack"] = max(resources[name]["stack"], int(found[1]))
            resources[name]["spilled"] += int(found[2]) + int(found[3])
        elif found := USED.search(line):
            resources[name] |= {"registers": int(found[1]), "static_shared": int(found[2] or 0)}
    return resources


@pytest.mark.proof
def test_kernels_stay_inside_their_budget(tmp_path: Path) -> None:
    budget = json.loads((ROOT / "csrc/cuda/budget.json").read_text())
    used = compile_kernels(tmp_path, 90)
    assert used.keys() == budget.keys() == set(NAMES.values())
    over = {
        f"{kernel}: {what}": (amount, budget[kernel][what])
        for kernel, resources in used.items()
        for what, amount in resources.items()
        if amount > budget[kernel][what]
    }
    assert not over


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 100])
def test_no_kernel_spills_on_the_other_cards(tmp_path: Path, arch: int) -> None:
    for kernel, resources in compile_kernels(tmp_path, arch).items():
        assert resources["spilled"] == 0, kernel
