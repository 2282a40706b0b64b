"""Proves that a move of code changes no bit: an older commit and the working tree train to the same bytes.

    make same-bits                                            the working tree against the last commit
    make same-bits AGAINST=43e124b                            against any commit
    python -m tests.same_bits --against 43e124b --quick       a teacher and a distilled training only

Both versions run the same commands, side by side, in folders of the same shape: one torch thread and one loader thread
each, fixed seeds, no GPU, built-in data that each side writes for itself. Every path is typed relative. About three
minutes on two cores; edit on while it runs, since it works on a copy of the working tree.

    teacher     the digits' teacher, 2 epochs
    whole       a student distilled from it, 2 epochs: RandAugment, erasing, mixing, drop-path, dropout, an average
    ranks       the same on two gloo ranks, with repeated augmentation and micro-batches
    labels      a label cache filled ahead of time, and a soft distillation that reads it
    tuned       fine-tuning of `whole` at another size: SGD, bf16, evaluation mode, softmax fusion
    photos      JPEG files, without a teacher
    answers     evaluate, predict and export of `whole`
    killed      `whole`, killed by SIGKILL in its second epoch and continued, by the new code
    continued   `whole`, killed by SIGKILL under the OLD code and continued by the NEW
    images      the built-in data

`killed` and `continued` are compared with the old code's `whole`, and must have kept what was trained before the kill.
Files are compared byte for byte: weights, averages, moments, caches, exports, config.json, data.json, summary.json,
settings.json, teacher.json and whatever else a command writes. A file that only one side has is a difference.
`NOT_COMPARED` names the fields that hold times, memory, versions and the host; `LEFT_OUT` the files that hold prose,
pictures and times.

Binaries: where csrc/ and setup.py are the same, both sides have copies of the working tree's (`make setup` builds
them); else each side builds its own, without CUDA.

Exit codes: 0 the same bytes, 1 a difference (the table names the first file of every case), 2 a command failed. After
1 and 2 the runs of both sides are kept, and a line says where.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# Fields that may differ, at any depth of the file. state.json's own digest covers its times and versions.
NOT_COMPARED = {
    "metrics.jsonl": {
        "images_per_second", "data_wait", "teacher_share", "memory", "eta", "mfu", "slowest_wait", "slowest_rank",
        "seconds", "headroom", "machine",
    },
    "state.json": {"seconds", "versions", "sha256"},
    "scores.json": {"seconds", "images_per_second", "date", "machine", "versions", "command"},
}  # fmt: skip
LEFT_OUT = {"logs", "tensorboard", "report.png", "report.html", "lock", "README.md"}

SEEDS = "--seed 1 --data-seed 2 --threads 1 --precision fp32"
STUDENT = (
    f"--recipe digits --epochs 2 {SEEDS} --teacher ../teacher/run --rand-augment rand-m9-mstd0.5-inc1 --flip 0.5 "
    "--erase 0.25 --mixup 0.8 --cutmix 1.0 --drop-path 0.1 --dropout 0.1 --save-every 4"
)
SOFT = f"{STUDENT} --distill soft --alpha 0.5 --tau 2 --kl-normalizer batch --teacher-top-k 5 --teacher-cache cache"
TRAIN = f"-m deit_fast.train {STUDENT} --out run"
TWO_RANKS = "-m torch.distributed.run --standalone --nproc-per-node 2"

# What follows `python`, in the folder of the case's name; "> FILE" keeps the output.
CASES = {
    "teacher": (f"-m deit_fast.train --recipe digits-teacher --epochs 2 {SEEDS} --out run",),
    "whole": (TRAIN,),
    "ranks": (f"{TWO_RANKS} {TRAIN} --repeats 2 --micro-batch 16",),
    "labels": (f"-m deit_fast.teacher {SOFT}", f"-m deit_fast.train {SOFT} --out run"),
    "tuned": (
        f"-m deit_fast.train --recipe digits --epochs 1 {SEEDS} --distill none --weights ../whole/run --image-size 24 "
        "--train-mode eval --fusion softmax --optimizer sgd --precision bf16 --out run",
    ),
    "photos": (
        f"-m deit_fast.train --recipe demo --epochs 1 {SEEDS} --distill none --model deit_tiny_patch16_224 "
        "--image-size 32 --width 64 --depth 2 --out run",
    ),
    "answers": (
        "-m deit_fast evaluate ../whole/run --threads 1 --json scores.json",
        "-m deit_fast predict ../images/digits-1/val --model ../whole/run --json > predictions.jsonl",
        "-m deit_fast export ../whole/run --to timm --out exported",
    ),
}
# Variables of a scheduler, a launcher or the user that would change a training.
FOREIGN = (
    "DEIT_FAST_", "SLURM_", "OMP_", "MKL_", "TORCH", "PYTHON", "RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "MASTER_",
)  # fmt: skip
QUICK = ("teacher", "whole")
RESTARTS = {"killed": "new", "continued": "old"}  # case → the side that begins it; the new side ends it
KILL_AFTER, LAST_STEP = 28, 44  # a checkpoint in the middle of the second epoch, and its last


class Failed(Exception):
    """A command of one side went wrong, so the bytes cannot be compared."""


@dataclass(frozen=True)
class Side:
    """One version of the code and the runs that it makes."""

    name: str  # "old" or "new"
    code: Path  # this version's files
    home: Path  # a folder per case

    def environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | {
            "PYTHONPATH": f"{self.code}{os.pathsep}{self.code / 'kernels'}",  # comes before an editable install
            "DEIT_FAST_CACHE": str(self.home / "images"),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }

    def log(self, case: str) -> Path:
        return self.home.parent / f"{self.name}-{case}.log"

    def start(self, folder: Path, command: str) -> subprocess.Popen[bytes]:
        folder.mkdir(parents=True, exist_ok=True)
        command, _, kept = command.partition(" > ")
        with open(self.log(folder.name), "ab") as log, open(folder / kept if kept else os.devnull, "wb") as output:
            return subprocess.Popen(
                [sys.executable, *shlex.split(command)], cwd=folder, env=self.environment(), stderr=log,
                stdout=output if kept else log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def run(self, case: str, commands: Sequence[str]) -> None:
        """The commands of a case, one after the other."""
        for command in commands:
            code = self.start(self.home / case, command).wait()
            if code:
                tail = self.log(case).read_text(errors="replace").splitlines()[-15:]
                raise Failed("\n".join([f"the {self.name} code ended with {code}: python {command}", *tail]))

    def begin_and_kill(self, folder: Path, command: str) -> None:
        """Start a training and kill it when the checkpoint of step KILL_AFTER is written."""
        process = self.start(folder, command)
        while process.poll() is None and newest_step(folder / "run") < KILL_AFTER:
            time.sleep(0.002)
        process.kill()
        code, step = process.wait(), newest_step(folder / "run")
        if code != -signal.SIGKILL or not KILL_AFTER <= step < LAST_STEP:
            raise Failed(f"the {self.name} code ended with {code} at step {step}, before it could be killed: {command}")

    def check_imports(self) -> None:
        """Raises Failed when Python imports another copy than this side's."""
        show = "import deit_fast, deit_kernels; print(deit_fast.__file__, deit_kernels.__file__, sep='\\n')"
        done = subprocess.run(
            [sys.executable, "-c", show], cwd=self.home, env=self.environment(), capture_output=True, text=True
        )
        wanted = [self.code / "deit_fast/__init__.py", self.code / "kernels/deit_kernels/__init__.py"]
        if done.stdout.splitlines() != [str(path) for path in wanted]:
            raise Failed(f"the {self.name} code is not what Python imports: {done.stdout or done.stderr}")


def newest_step(run: Path) -> int:
    """Steps of the newest checkpoint; 0 before the first."""
    pointer = run / "checkpoints" / "newest"
    return int(pointer.read_text().strip().removeprefix("step_")) if pointer.exists() else 0


def differences(old: Path, new: Path) -> tuple[int, list[str]]:
    """(files compared, a sentence for every file that differs), both folders searched with their sub-folders."""
    mine, theirs = ({path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} for folder in (old, new))
    names = sorted(name for name in mine | theirs if not LEFT_OUT & set(name.parts))
    names.sort(key=lambda name: name.name != "metrics.jsonl")  # first, since it shows where a training parted
    found = [] if names else ["nothing was written"]
    for name in names:
        if name not in mine or name not in theirs:
            found.append(f"{name} is missing on the {'old' if name not in mine else 'new'} side")
        elif (before := content(old / name)) != (after := content(new / name)):
            found.append(f"{name}: {first_difference(before, after)}")
    return len(names), found


def content(path: Path) -> bytes:
    """What is compared of a file: its bytes, or its fields but those of NOT_COMPARED, one a line."""
    ignored = NOT_COMPARED.get(path.name)
    if ignored is None:
        return path.read_bytes()
    text = path.read_text()
    values = [json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]
    return "\n".join(json.dumps(without(value, ignored), indent=1, sort_keys=True) for value in values).encode()


def without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: without(inner, names) for key, inner in value.items() if key not in names}
    return [without(inner, names) for inner in value] if isinstance(value, list) else value


def first_difference(old: bytes, new: bytes) -> str:
    """What stands on either side where two texts part, or the first byte of other files."""
    both = zip(old, new, strict=False)
    place = next((i for i, (one, other) in enumerate(both) if one != other), min(len(old), len(new)))
    if b"\0" in old + new:
        return f"byte {place:,} of {len(old):,}"
    begin = max(old.rfind(b"\n", 0, place) + 1, place - 40)
    before, after = (
        side[begin : place + 20].decode(errors="replace").partition("\n")[0].strip() for side in (old, new)
    )
    return f"{before or 'nothing'} -> {after or 'nothing'}"


def git(root: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True)
    if done.returncode:
        raise Failed(done.stderr.decode().strip())
    return done.stdout


def changed_files(root: Path, commit: str, *paths: str) -> list[str]:
    """Those of the working tree that differ from the commit's, new and removed ones too."""
    tracked = git(root, "diff", "--name-only", commit, "--", *paths)
    return (tracked + git(root, "ls-files", "--others", "--exclude-standard", "--", *paths)).decode().splitlines()


def copies(root: Path, commit: str, folder: Path) -> tuple[Side, Side]:
    """The files of the commit and those of the working tree, each in a folder of its own."""
    old, new = (Side(name, folder / f"{name}-code", folder / name) for name in ("old", "new"))
    for path in (old.code, old.home, new.code, new.home):
        path.mkdir()
    subprocess.run(["tar", "-x", "-C", str(old.code)], input=git(root, "archive", commit), check=True)
    for name in git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").decode().split("\0"):
        source, target = root / name, new.code / name
        if source.is_file():  # not one that was removed and is still in git's index
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return old, new


def give_binaries(root: Path, commit: str, sides: Sequence[Side]) -> str:
    """Copies of the working tree's binaries where their sources are the same, else each side's own; says which."""
    changed = changed_files(root, commit, "csrc", "setup.py")
    if changed:
        toolkit = refused_toolkit(sides[0].home.parent / "cuda")
        for side in sides:
            build, environment = [sys.executable, "setup.py", "build_ext", "--inplace"], side.environment()
            environment["CUDA_HOME"] = str(toolkit)
            done = subprocess.run(build, cwd=side.code, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise Failed(f"the {side.name} code does not build:\n{done.stderr[-2000:]}")
    else:
        for binary in [path for room in ("deit_fast", "kernels") for path in (root / room).rglob("*.so")]:
            for side in sides:
                shutil.copy2(binary, side.code / binary.relative_to(root).parent)
    old, new = ({path.name for path in side.code.rglob("*.so")} for side in sides)
    how = f"built by each side, since {changed[0]} differs" if changed else "those of the working tree"
    return f"{how}: {', '.join(sorted(old | new)) or 'none'}" + (
        f"; only one side has {', '.join(sorted(old ^ new))}" if old ^ new else ""
    )


class Table:
    """Prints a row for every case, as soon as it is known.

    Attributes:
        files: compared so far.
        differing: cases with a difference.
    """

    def __init__(self) -> None:
        self.files, self.differing = 0, list[str]()
        print(f"\n{'case':10} {'files':>6}  result")

    def row(self, case: str, old: Path, new: Path, found: Sequence[str] = ()) -> None:
        """Compare two folders; `found` are differences that are known already."""
        files, others = differences(old, new)
        found = [*found, *others]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        print(f"{case:10} {files:6,}  {found[0] + more if found else 'equal'}", flush=True)
        self.files += files
        self.differing += [case] if found else []


def restart(case: str, begins: Side, ends: Side) -> list[str]:
    """Train `whole` in two halves; returns what is wrong with the seam."""
    folder = ends.home / case
    begins.begin_and_kill(folder, TRAIN)
    metrics = folder / "run" / "metrics.jsonl"
    first = metrics.read_text().partition("\n")[0]  # with its times: a run that begins anew has other ones
    ends.run(case, [TRAIN])
    return [] if metrics.read_text().partition("\n")[0] == first else ["it began anew instead of continuing"]


def refused_toolkit(folder: Path) -> Path:
    """A CUDA toolkit of version 0.0, which setup.py refuses: nvcc takes minutes, for a binary that is not used here."""
    for name, text in {"bin/nvcc": "#!/bin/sh\necho release 0.0\n", "include/cuda_runtime.h": ""}.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    (folder / "bin/nvcc").chmod(0o755)
    return folder


def compare(root: Path, commit: str, cases: Mapping[str, Sequence[str]], restarts: Mapping[str, str]) -> bool:
    """Run both sides and print the table; whether all bytes are the same."""
    began, same = time.monotonic(), False
    commit = git(root, "rev-parse", "--short", "--verify", f"{commit}^{{commit}}").decode().strip()
    folder = Path(tempfile.mkdtemp(prefix="same-bits-")).resolve()
    try:
        old, new = sides = copies(root, commit, folder)
        changed = changed_files(root, commit, "deit_fast", "kernels", "csrc")
        print(f"old: {commit}; new: the working tree, {len(changed)} files of deit_fast/, kernels/ and csrc/ differ")
        print(f"binaries: {give_binaries(root, commit, sides)}")
        for side in sides:
            side.check_imports()
        table = Table()
        with ThreadPoolExecutor(2) as pool:
            for case, commands in cases.items():
                list(pool.map(Side.run, sides, repeat(case), repeat(commands)))
                table.row(case, old.home / case, new.home / case)
            begins = [old if name == "old" else new for name in restarts.values()]
            seams = list(pool.map(restart, restarts, begins, repeat(new)))
        for case, found in zip(restarts, seams, strict=True):
            table.row(case, old.home / "whole", new.home / case, found)
        table.row("images", old.home / "images", new.home / "images")
        same, seconds = not table.differing, time.monotonic() - began
        if same:
            print(
                f"\nThe same bits: {commit} and the working tree wrote {table.files:,} equal files ({seconds:.0f} s)."
            )
        else:
            print(f"\nNOT the same bits: {commit} and the working tree differ in {', '.join(table.differing)}.")
    finally:
        if same:
            shutil.rmtree(folder)
        else:
            print(f"The runs of both sides are in {folder}: remove it when you have looked.", flush=True)
    return same


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.same_bits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", default="HEAD", metavar="COMMIT", help="the older version (default: HEAD)")
    parser.add_argument("--quick", action="store_true", help=f"only {' and '.join(QUICK)}")
    chosen = parser.parse_args(arguments)
    cases = {name: CASES[name] for name in QUICK} if chosen.quick else CASES
    try:
        return 0 if compare(ROOT, chosen.against, cases, {} if chosen.quick else RESTARTS) else 1
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
