"""The first minutes on a card: prove, then time what is proven, what decides most first (run_gpu.sh starts it).

    benchmarks/run_gpu.sh [results.json]

A failed test puts its op into quarantine (quarantine.py): nothing that uses it is timed or stated, everything else goes
on, and the exit code is 3. A test that hangs or ends its process counts as failed, and the next process goes on behind
it. What the time does not suffice for, or what cannot run, is named, and the exit code is 1, or 3 where a test failed
too: the same command continues. Steps are kept in <results>-<digest of the sources>.parts, failures too. Changed code
is proven and measured again; a second try does not clear unchanged code, unless that folder is removed.

Needs torch >= 2.11 with triton >= 3.6, the C compiler and Python headers that Triton needs, numpy, safetensors, pytest
and pytest-benchmark; no network. With those alone it proves and times attention and the loss. pytest-xdist makes the
tests several times as fast. nvcc, setuptools >= 77 and ninja build the extensions; without them the augmentation is
left out. So is, with the reason, a group that needs more: train, step and inference timm and what pyproject's extra
[train] lists, inference transformers too; augment timm, torchvision, pillow and scikit-learn; overhead timm and pillow;
loader torchvision, simplejpeg and scikit-image; counters ncu. This file itself needs the standard library alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from benchmarks.card.quarantine import USES, blocked, failures, unfinished

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("PYTHON", sys.executable)
LIMIT = float(os.environ.get("LIMIT", 450))
HANG = 60  # seconds of one test
BEGAN = time.monotonic()
WHEELS = ["safetensors", "pytest", "pytest-xdist", "pytest-benchmark"]
FACTS = """
import importlib.util, sys
needed = ["torch", "triton", "numpy", "safetensors", "pytest", "pytest_benchmark"]
if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
    sys.exit(f"missing here: {', '.join(missing)}; where there is a network type benchmarks/run_gpu.sh --wheels DIR, "
             "carry DIR here, and type WHEELS=DIR benchmarks/run_gpu.sh")
import torch
if not torch.cuda.is_available():
    sys.exit("no CUDA card: this script has nothing to measure")
from benchmarks.measure.machine import commit, kind, sources
print(kind(), sources(), commit(), "yes" if importlib.util.find_spec("xdist") else "no")
"""


class Step(NamedTuple):
    """One process, at most `seconds` long.

    Attributes:
        arguments: of Python; "{parts}" is the folder of the parts.
        proves: the op whose tests these are; "" for a measurement.
        needs: Python code that fails where the step cannot run; the last line of its error is the reason.
    """

    name: str
    seconds: int
    arguments: list[str]
    proves: str = ""
    needs: str = ""


def tests(name: str, seconds: int, op: str, *arguments: str, needs: str = "") -> Step:
    return Step(name, seconds, ["-m", "pytest", "-q", "-m", "gpu and not slow", *arguments], op, needs)


def rows(name: str, seconds: int, group: str = "", words: str = "", file: str = "") -> Step:
    """The rows of a group whose names match `words`, as pytest's -k."""
    chosen = ["-k", words] if words else []
    out = f"{{parts}}/{file or name}.json"
    arguments = ["-m", "benchmarks", group or name, *chosen, "--out", out, "--continue"]
    return Step(name, seconds, arguments, needs="" if group else f"import benchmarks.bench_{name}")


def module(name: str, seconds: int, *arguments: str, path: str = "", needs: str = "") -> Step:
    run = ["-m", path or f"benchmarks.card.{name}", "--out", f"{{parts}}/{name}.json", *arguments]
    return Step(name, seconds, run, needs=needs)


def steps(parallel: bool) -> list[Step]:
    """In the order in which they run."""
    together = ["-n", "8"] if parallel else []  # most of the tests' time is compilation, some 300 kernels
    attention = "tests/kernels/attention/test_attention_on_a_card.py"
    loss = "tests/kernels/distill_loss/test_loss_on_a_card.py"
    augment = "tests/kernels/augment/test_augment_gpu.py"
    training = [
        "tests/deit_fast/train/test_step.py", "tests/deit_fast/run/test_snapshot.py",
        "tests/deit_fast/data/test_mixing.py", "tests/deit_fast/data/test_loader_options.py",
    ]  # fmt: skip
    not_compiled = "not compiled and not flex"
    gpu_augments = "import sys, PIL, sklearn; from deit_kernels import _extension; sys.exit(_extension.cuda_missing)"
    trains = "import benchmarks.bench_train"
    return [
        tests("first_tests", 120, "attention N198 D64 bfloat16", "-k", "198-64", attention),
        rows("first_rows", 60, "attention", f"(B256-N198-H6 or agree) and {not_compiled}", "attention"),
        module("constants", 45),
        tests("attention_tests", 240, "attention", *together, attention),
        rows("attention", 100, "attention", not_compiled),
        tests("loss_tests", 120, "loss", *together, loss),
        rows("loss", 60, "loss"),
        Step("build", 150, ["setup.py", "-q", "build_ext", "--inplace"]),
        tests("augmentation_tests", 120, "augmentation", *together, augment, needs=gpu_augments),
        module("step", 60, needs=trains),
        tests("training_tests", 90, "training", *together, *training, needs=trains),
        rows("train", 90),
        module("counters", 60),
        rows("augment", 40),
        rows("inference", 60),
        module("tune", 60, "--seconds", "40", path="deit_kernels.tune"),
        rows("overhead", 30),
        rows("resume", 30),
        rows("loader", 180),
        rows("compiled_peers", 240, "attention", "compiled or flex"),  # most of a minute a row
    ]


class Hour:
    """The steps of one call, and what became of them."""

    def __init__(self, parts: Path) -> None:
        self.parts, self.journal = parts, parts / "tests.jsonl"
        self.unproven: set[str] = set()
        self.missing = False
        (parts / "left_out").unlink(missing_ok=True)

    def take(self, step: Step) -> None:
        """Run a step, unless it is done, stands on an op that is wrong or unproven, or no time is left."""
        done = self.parts / f"{step.name}.done"
        if done.exists():
            return print(f"{step.name}: done before")
        if wrong := blocked(USES.get(step.name, ""), {failure.op for failure in failures(self.journal)}):
            return self.leave_out(step, f"tests of {', '.join(wrong)} failed")
        if waiting := blocked(USES.get(step.name, ""), self.unproven):
            return self.miss(step, f"tests of {', '.join(waiting)} have not ended: run the same command again")
        if self.seconds(step) < 10:
            return self.miss(step, "no time is left: run the same command again")
        if step.needs and (reason := missing(step.needs)):
            return self.leave_out(step, reason)
        print(f"{datetime.now():%T} {step.name}")
        code = self.prove(step) if step.proves else run(self.command(step), self.seconds(step))
        if step.proves and not code:
            self.unproven = {op for op in self.unproven if not op.startswith(step.proves)}
        if code:
            return self.miss(step, f"exit code {code}, in part at least")
        done.touch()

    def prove(self, step: Step) -> int:
        """Run tests until each has an outcome, a new process behind each one that a test ends; 124: no time is left."""
        until = time.monotonic() + self.seconds(step)
        while True:
            known = self.journal.stat().st_size if self.journal.exists() else 0
            plugin = ["-p", "benchmarks.card.journal", "--journal", str(self.journal)]
            own = [*plugin, "--known", str(known), "--hang", str(HANG)]
            code = run([*self.command(step), *own], until - time.monotonic())
            if code in (124, 137):
                self.unproven.add(step.proves)
                return code
            lost = unfinished(self.journal)
            for test in lost:
                self.fail(test, f"the process ended in it, or it took more than {HANG} s")
            if code in (0, 1, 5) and not lost:  # passed, some failed, none was left
                return 0
            if known == (self.journal.stat().st_size if self.journal.exists() else 0):
                self.fail(step.arguments[-1], f"pytest ended with exit code {code}")
                return 0

    def fail(self, test: str, message: str) -> None:
        with self.journal.open("a") as file:
            file.write(json.dumps({"test": test, "outcome": "failed", "message": message}) + "\n")

    def seconds(self, step: Step) -> float:
        return min(step.seconds, LIMIT - (time.monotonic() - BEGAN))

    def command(self, step: Step) -> list[str]:
        return [PYTHON, *(each.replace("{parts}", str(self.parts)) for each in step.arguments)]

    def miss(self, step: Step, reason: str) -> None:
        """Leave out what the same command may still bring."""
        self.missing = True
        if step.proves:
            self.unproven.add(step.proves)
        self.leave_out(step, reason)

    def leave_out(self, step: Step, reason: str) -> None:
        print(line := f"{step.name} is left out: {reason}")
        with (self.parts / "left_out").open("a") as file:
            file.write(line + "\n")


def run(command: list[str], seconds: float) -> int:
    """The exit code; at the limit SIGINT, so that what has been measured is written, and 124; killed, 137."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(max(seconds, 0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(15)
            return 124
        except subprocess.TimeoutExpired:
            return 137
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # workers that are left, too
        except ProcessLookupError:
            pass
        process.wait()


def missing(code: str) -> str:
    """Why Python code fails, in its last line; "" where it does not."""
    tried = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True)
    lines = tried.stderr.strip().splitlines() or ["no reason given"]
    return lines[-1] if tried.returncode else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/run_gpu.sh", description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="?", type=Path, help="default: benchmarks/results/<card>-<date>.json")
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="fetch what a machine with torch alone lacks, no more"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a script's background inherits it ignored
    here = Path(os.environ.get("HERE", "."))
    if arguments.wheels:
        fetch = ["-m", "pip", "download", "-q", "-c", "constraints.txt", "-d", str((here / arguments.wheels).resolve())]
        return subprocess.run([PYTHON, *fetch, *WHEELS]).returncode
    if os.environ.get("WHEELS"):
        packages = ROOT / "build" / "card-packages"
        for wheel in sorted((here / os.environ["WHEELS"]).resolve().glob("*.whl")):
            subprocess.run([PYTHON, "-m", "zipfile", "-e", str(wheel), "build/card-packages"], check=True)
        os.environ["PYTHONPATH"] += f":{packages}"
    os.environ.setdefault("DEIT_KERNELS_ATTENTION", "kernels")  # ours is proven and timed where SDPA would run, too
    facts = subprocess.run([PYTHON, "-c", FACTS], stdout=subprocess.PIPE, text=True)
    if facts.returncode:
        return 1
    card, digest, commit, parallel = facts.stdout.split()
    named = (
        here / arguments.results if arguments.results else ROOT / f"benchmarks/results/{card}-{datetime.now():%F}.json"
    )
    results = named.resolve()
    log, parts = results.with_suffix(".log"), results.with_name(f"{results.stem}-{digest}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    tee = subprocess.Popen(["tee", "-a", log], stdin=subprocess.PIPE, start_new_session=True)
    assert tee.stdin is not None
    for stream in (1, 2):
        os.dup2(tee.stdin.fileno(), stream)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    print(f"{datetime.now():%F %T} {card}, sources {digest}, commit {commit}")
    hour = Hour(parts)
    for step in steps(parallel == "yes"):
        hour.take(step)
    failed = failures(hour.journal)
    if list(parts.glob("*.json")) or failed:
        merge = ["-m", "benchmarks.card.results", str(parts), "--out", str(results)]
        hour.missing |= run([PYTHON, *merge], 60) != 0
        print(f"results: {results}, log: {log}")
    else:
        print(f"nothing was measured; log: {log}")
    return 3 if failed else int(hour.missing)


if __name__ == "__main__":
    sys.exit(main())
