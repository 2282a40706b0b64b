"""Where a run's time goes: of a step by its parts and ops, of an interval as a line of metrics.jsonl, of a card as MFU.

    clock = Clock(device, "teacher", "forward")
    with clock("teacher"): …                # a part of a step, for torch's profiler too
    meter = Meter(clock, batches, ranks, batch_size=1024, total_steps=9000, taught=True)
    meter.add(step(batch, lr))              # the host does not wait for the device
    meter.row(20, 0.1, lr)                  # means of the steps since the last row; here it waits

Model FLOPs utilisation (MFU) is the floating-point operations of the model, divided by what the card can do. A
multiplication and an addition count as two; only matrix products and convolutions are counted, as is usual.
"""

from __future__ import annotations

import copy
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule
from torch.utils.flop_counter import FlopCounterMode

from ..data import Batch, TrainLoader
from ..files import write_file
from ..model import VisionTransformer, ViTConfig
from ..ranks.group import Ranks
from ..run.report import Reporter
from ..weights.build import Frozen

# Dense bf16 rate with fp32 accumulation, in 1e12/s, from NVIDIA's data sheets. The first entry that the
# card's name contains is used, so longer entries come first.
_PEAKS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "H200": 989.4,
    "A100": 312.0,
    "B200": 2250.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A30": 165.0,
    "A40": 149.7,
    "RTX 4090": 165.2,
}

_FIRST, _TRACED, _ROWS = 10, 10, 30  # --profile: its first step, number of steps, ops in the table
_NAMED = 0.05  # the rank that waits longest for data is named if its share of the time exceeds the mean by this
_SUMS = 5  # loss, its label term, its teacher term, top-1, the gradient's norm
_SKIPPED = ("count", "row", "longest")  # skipped steps since the last row, in a row now, and the longest such series


class Losses(NamedTuple):
    """Scalars on the device; all but `loss` are detached."""

    loss: Tensor  # what is minimised
    label_term: Tensor
    teacher_term: Tensor  # 0 without a teacher
    top1: Tensor  # of the class token; of the only head in a plain model


class StepResult(NamedTuple):
    """What a step leaves to be logged, on the device; `grad_norm` and `finite` are the same on every rank."""

    losses: Losses  # detached; their mean over ranks is the loss of the global batch, unreadable images or not
    grad_norm: Tensor  # float32 scalar, the Euclidean norm of the gradient of all parameters
    finite: Tensor  # bool scalar: `grad_norm` is neither NaN nor infinite; where false, the step was skipped


class Clock:
    """Adds up the time of each part of a step: by pairs of events on a GPU, by the host's clock on a CPU."""

    def __init__(self, device: torch.device, *parts: str) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = dict.fromkeys(parts, 0.0)
        self._running: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """The time inside `with` is that of `part`, which torch's profiler shows by this name."""
        with record_function(part):
            if self._cuda:
                began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                began.record()
                yield
                ended.record()
                self._running.append((part, began, ended))
            else:
                start = time.perf_counter()
                yield
                self._seconds[part] += time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """The time of every part since the last call, as far as the device has come."""
        while self._running and self._running[0][2].query():
            part, began, ended = self._running.popleft()
            self._seconds[part] += began.elapsed_time(ended) / 1000
        seconds, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        return seconds


class Meter:
    """Sums the losses of all steps but skipped ones on the device; `row` reads them, once an interval.

    `skipped_in_a_row` is the longest series of skipped steps, as of the last row. The flags of skipped steps are the
    same on every rank, so the ranks need not communicate.
    """

    def __init__(
        self, clock: Clock, batches: TrainLoader, ranks: Ranks, *, batch_size: int, total_steps: int, taught: bool,
        peak: float | None = None,
    ) -> None:  # fmt: skip
        """`batch_size` counts the images of all ranks; `peak` is the images/s at which
        all cards would compute at their peak rate; None: unknown."""
        self._clock, self._batches, self._ranks = clock, batches, ranks
        self._batch_size, self._total_steps, self._taught, self._peak = batch_size, total_steps, taught, peak
        self._sums = torch.zeros(_SUMS, dtype=torch.float64, device=ranks.device)
        self._skipped = torch.zeros(len(_SKIPPED), dtype=torch.int64, device=ranks.device)
        self.skipped_in_a_row = 0
        self._stages: dict[str, float] = {}
        self._norm_known = True
        self._restart()

    def _restart(self) -> None:
        self._sums.zero_()
        self._steps = self._not_timed = 0
        self._began, self._labelled = time.perf_counter(), self._batches.labelled
        self._loader = vars(self._batches.seconds).copy()

    def add(self, result: StepResult) -> None:
        """Add a step's losses, accuracy and gradient norm, without waiting for the device."""
        terms = torch.stack([*result.losses, result.grad_norm])
        self._sums += torch.where(result.finite, terms, 0.0)
        skipped = result.finite.logical_not().long()
        count, in_a_row, longest = self._skipped  # views
        count += skipped
        in_a_row.add_(1).mul_(skipped)
        torch.maximum(longest, in_a_row, out=longest)
        self._steps += 1

    def state(self) -> dict[str, Any]:
        """The sums since the last row over all ranks, and the steps, as JSON values."""
        sums = self._ranks.total(self._sums.clone()).tolist()
        skipped = dict(zip(_SKIPPED, self._skipped.tolist(), strict=True))
        return {"sums": sums, "ranks": self._ranks.world_size, "steps": self._steps, "skipped": skipped}

    def load(self, state: dict[str, Any] | None) -> None:
        """Continue from the `state` of another meter, also of another number of ranks."""
        if state is not None:
            if self._ranks.main:  # on rank 0 alone: `row` adds the ranks' sums, and these are of all ranks already
                known = state["sums"] + [0.0] * (_SUMS - len(state["sums"]))
                sums = torch.tensor(known, dtype=torch.float64, device=self._sums.device)
                self._sums += sums * (self._ranks.world_size / state["ranks"])  # `row` divides by today's number
            self._norm_known = len(state["sums"]) == _SUMS or not state["steps"]  # an older version had no norm
            self._steps = self._not_timed = state["steps"]
            self._skipped.copy_(torch.tensor([state["skipped"][name] for name in _SKIPPED]))

    @contextmanager
    def paused(self, stage: str = "") -> Iterator[None]:
        """The time inside `with` (an evaluation, a checkpoint) does not count as training time, but as `stage`'s."""
        began = time.perf_counter()
        yield
        lasted = time.perf_counter() - began
        self._began += lasted
        if stage:
            self._stages[stage] = self._stages.get(stage, 0.0) + lasted

    def stages(self) -> dict[str, float]:
        """Seconds of every stage that has ended since the last call."""
        stages, self._stages = self._stages, {}
        return stages

    def row(self, step: int, epoch: float, lr: float) -> dict[str, Any]:
        """A line of metrics.jsonl for the steps since the last one; the host waits for the device here.

        Raises:
            ValueError: no image of these steps is readable, on any rank.
        """
        ranks = self._ranks
        loader = {name: value - self._loader[name] for name, value in vars(self._batches.seconds).items()}
        # A single all-reduce: each rank puts its waiting time into a place of its own, which is 0 at the others.
        own = torch.zeros(1 + ranks.world_size, dtype=torch.float64)
        own[0] = self._batches.labelled - self._labelled
        own[1 + ranks.rank] = loader["wait"]
        both = ranks.total(torch.cat([self._sums, own.to(ranks.device)])).tolist()
        sums, labelled, waits = both[:_SUMS], both[_SUMS], both[_SUMS + 1 :]
        if not labelled:
            path, reason = next(iter(self._batches.bad_images.items()))
            raise ValueError(f"no image of the steps up to {step} is readable; the first is {path}: {reason}")
        skipped, in_a_row, self.skipped_in_a_row = self._skipped.tolist()
        self._skipped.copy_(torch.tensor([0, in_a_row, in_a_row]))  # a series may go on in the next interval
        count = (self._steps - skipped) * ranks.world_size
        loss, label, distillation, top1, norm = (value / count if count else None for value in sums)
        seconds = max(time.perf_counter() - self._began, 1e-9)
        shares = [min(wait / seconds, 1.0) for wait in waits]
        speed = max(self._steps - self._not_timed, 1) * self._batch_size / seconds
        parts = self._clock.seconds()
        row = {
            "step": step,
            "epoch": round(epoch, 4),
            "loss": loss,
            "label": label,
            "distillation": distillation if self._taught else None,
            "top1": None if top1 is None else 100 * top1,
            "grad_norm": norm if self._norm_known else None,
            "skipped": skipped,
            "lr": lr,
            "images_per_second": speed,
            "data_wait": sum(shares) / len(shares),
            "teacher_share": parts["teacher"] / seconds if self._taught else None,
            "memory": memory_used(ranks.device),
            "eta": (self._total_steps - step) * self._batch_size / speed,
            "seconds": {name: round(value, 6) for name, value in (parts | loader | self.stages()).items()},
        }
        self._norm_known = True
        if self._peak:
            row["mfu"] = speed / self._peak
        if max(shares) > row["data_wait"] + _NAMED:
            row["slowest_wait"] = max(shares)
            row["slowest_rank"] = shares.index(max(shares))
        self._restart()
        return row


@contextmanager
def profiled(folder: Path, batches: TrainLoader, ranks: Ranks, reporter: Reporter) -> Iterator[Callable[[], None]]:
    """A function to be called after every step. Of rank 0's steps 10 to 19 `folder` gets torch's trace and table:

        trace.json.gz     for https://ui.perfetto.dev or chrome://tracing
        breakdown.txt     milliseconds a step, and torch's table of parts and ops

    By then everything is compiled and allocated. The table begins with the steps and their parts (teacher, forward,
    loss, backward, optimiser), which follow one another; the loader's threads work beside them. On a GPU autograd
    launches the kernels of the backward pass from a thread of its own, so they are among the ops only; that has not
    been tried on a GPU yet.
    """
    on_gpu = ranks.device.type == "cuda"
    began, lasted, loader = 0.0, 0.0, vars(batches.seconds)

    def step_done() -> None:
        nonlocal began, lasted, loader
        if on_gpu and tracing.step_num + 1 in (_FIRST, _FIRST + _TRACED):
            torch.cuda.synchronize(ranks.device)
        lasted = time.perf_counter() - began
        if tracing.step_num + 1 == _FIRST:
            began, loader = time.perf_counter(), vars(batches.seconds).copy()
        tracing.step()

    def write(finished: profile) -> None:
        steps = finished.step_num - _FIRST
        if not steps or not ranks.main:
            return
        a_step = 1000 / steps
        spent = {name: a_step * (after - loader[name]) for name, after in vars(batches.seconds).items()}
        beside = " · ".join(f"{name} {value:.2f}" for name, value in spent.items())
        by = "device_time_total" if on_gpu else "cpu_time_total"
        table = finished.key_averages().table(sort_by=by, row_limit=_ROWS, max_name_column_width=50)
        text = (
            f"{a_step * lasted:.1f} ms a step, mean of {steps} steps on {ranks.device}\n"
            f"loading, in ms a step: {beside}\n{table}"
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            finished.export_chrome_trace(str(folder / "trace.json.gz"))
            write_file(folder / "breakdown.txt", lambda path: path.write_text(text + "\n"))
        except OSError as error:
            reporter.say(f"the profile could not be written ({error.strerror}): the run goes on")
        reporter.say(f"{text}\n{folder}")

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    when = schedule(skip_first=_FIRST - 1, wait=0, warmup=1, active=_TRACED, repeat=1)
    with profile(activities=activities, schedule=when, on_trace_ready=write) as tracing:
        yield step_done
    if tracing.step_num <= _FIRST:
        reporter.say(f"nothing was profiled: the run had fewer than {_FIRST + 1} steps")


def measured_speed(
    body: Callable[[Batch], object], batches: Iterator[Batch], steps: int, batch_size: int, ranks: Ranks,
    warm_up: int = 0,
) -> float:  # fmt: skip
    """Images/s of all ranks in `steps` calls, after `warm_up` calls that are not timed; the slowest rank's."""
    for _ in range(warm_up):
        body(next(batches))
    _settle(ranks)
    began = time.perf_counter()
    for _ in range(steps):
        body(next(batches))
    _settle(ranks)
    return batch_size * steps / max(ranks.gather(time.perf_counter() - began))


def _settle(ranks: Ranks) -> None:
    """Wait until every rank's device is done."""
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
    ranks.wait()


def memory_used(device: torch.device) -> int:
    """Peak bytes that this process has allocated so far: of the GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_flops(card: str) -> float | None:
    """Dense bf16 FLOP/s of a card by its driver's name for it; None for a card that is not in the table."""
    # Whole words only: "NVIDIA L40" contains "L4".
    words = f" {card} ".replace("-", " ")
    return next((1e12 * peak for name, peak in _PEAKS.items() if f" {name} " in words), None)


def forward_flops(model: nn.Module, image_size: int) -> float | None:
    """FLOPs of one image's forward pass; None for a model that does not run on the meta device."""
    if isinstance(model, Frozen):
        model = model.model
    if isinstance(model, VisionTransformer):
        return _transformer_flops(model.config)
    shapes = copy.deepcopy(model).to("meta").eval()
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            dtype = next((parameter.dtype for parameter in shapes.parameters()), torch.float32)
            shapes(torch.empty(1, 3, image_size, image_size, dtype=dtype, device="meta"))
    except Exception:  # a model that is not ours may raise anything on tensors without values
        return None
    return float(counter.get_total_flops()) or None


def training_flops(student: nn.Module, teacher: nn.Module | None, image_size: int) -> float | None:
    """FLOPs of one image in a training step: the student's forward, its backward (twice that), the teacher's."""
    ours = forward_flops(student, image_size)
    theirs = forward_flops(teacher, image_size) if teacher is not None else 0.0
    return None if ours is None or theirs is None else 3 * ours + theirs


def _transformer_flops(config: ViTConfig) -> float:
    patches, width = config.grid**2, config.width
    tokens = patches + config.prefix_tokens
    hidden = int(width * config.mlp_ratio)
    block = tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
    heads = (2 if config.distilled else 1) * width * config.classes
    embedding = patches * 3 * config.patch_size**2 * width
    return 2.0 * (embedding + config.depth * block + heads)
