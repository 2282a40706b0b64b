"""A training step against timm's token-distillation task and the official loop's form: same model, loss, data, one run.

    pytest benchmarks/bench_train.py -s
    pytest benchmarks/bench_train.py --benchmark-json=benchmarks/results/train-cpu.json

A step is what a batch does to the weights: teacher, forward, loss, backward, AdamW, moving average. All take the
same images and labels, the same initial weights, the same precision (bfloat16 autocast on a card; on a CPU float32, or
bfloat16 autocast where the row says so; the weights of our bfloat16 teacher are cast once, as in the trainer), hard
distillation with weights ½ and ½, and no drop-path. The number is images/s. On a card a name stands for the compiled
form, and the eager one is beside it; on a CPU all contenders of a row are eager, or all are compiled.

    student only     no teacher: the class token's cross-entropy; timm's model in the official loop's form beside it
    live teacher     timm's TokenDistillationTask, AdamW and ModelEmaV3, and the official loop's form, against
                     ours
    cached labels    ours looks the teacher's labels up; the peers cannot, and pay for the teacher

The official form is its loop as published: criterion and DistillationLoss in plain PyTorch, loss.item() and a
synchronisation every step, timm's old-style moving average of every tensor of the state dict. On a CPU one thread works
and processor time counts, which others on the machine disturb least; on a card the clock is the wall with the device
synchronised at the end of a turn. The limit is the step's own arithmetic (with cached labels: without the teacher's) at
the rate of one large product of matrices. Not yet measured on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.task import TokenDistillationTask
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import interleaved
from benchmarks.measure.device_timing import DEVICE, ON_CARD, arithmetic_limit, environment
from benchmarks.measure.interleaved import repeated
from deit_fast.config import Config, Precision
from deit_fast.data import Batch
from deit_fast.model import IMAGENET_NORMALISATION, create_model
from deit_fast.ranks.group import Ranks
from deit_fast.run.report import Reporter
from deit_fast.teacher.engine import TeacherEngine
from deit_fast.train.precision import autocast
from deit_fast.train.step import TrainingStep
from deit_fast.weights.build import Frozen

# On a CPU the clock is the processor time of one thread.
pytestmark = [pytest.mark.benchmark(group="train"), *([] if ON_CARD else [pytest.mark.usefixtures("one_thread")])]

CLASSES, SIZE, STEPS, DECAY, LR = 1000, 224, 2, 0.99996, 1e-3
ROWS = 256 if ON_CARD else 4
TEACHER = "regnety_160" if ON_CARD else "regnety_008"
Step = Callable[[Tensor, Tensor], object]


class Form(NamedTuple):
    """How both sides of a row compute."""

    size: str
    precision: Precision = "bf16" if ON_CARD else "fp32"
    compiled: bool = ON_CARD

    def autocast(self) -> AbstractContextManager:
        return autocast(self.precision, DEVICE)

    def __str__(self) -> str:
        return "-".join([self.size, *([] if ON_CARD else [self.precision, *["compiled"] * self.compiled])])


FORMS = [Form(size) for size in (("tiny", "small", "base") if ON_CARD else ("tiny", "small"))]
ALSO_BF16 = FORMS if ON_CARD else [*FORMS, Form("tiny", "bf16")]
ALSO_COMPILED = FORMS if ON_CARD else [*ALSO_BF16, Form("tiny", compiled=True)]


def name_of(size: str) -> str:
    return f"deit_{size}_distilled_patch16_224"


def ours(form: Form, teacher: nn.Module | None, *, cached: bool = False) -> Step:
    distill = "hard" if teacher is not None else "none"
    config = Config(
        model=name_of(form.size), batch_size=ROWS, lr=LR, ema_decay=DECAY, compile="on" if form.compiled else "off",
        distill=distill, teacher="x" if distill == "hard" else "",
    )  # fmt: skip
    torch.manual_seed(0)
    model = create_model(name_of(form.size), classes=CLASSES).to(DEVICE).train()
    taught: Any = None
    if cached:
        labels = torch.zeros(ROWS, dtype=torch.int64, device=DEVICE)
        taught = lambda batch: labels  # noqa: E731
    elif teacher is not None:
        dtype = torch.bfloat16 if form.precision == "bf16" else torch.float32
        own = Frozen(teacher, IMAGENET_NORMALISATION)
        engine = TeacherEngine(own, image_size=SIZE, device=DEVICE, dtype=dtype, compiled=form.compiled)
        taught = lambda batch: engine(batch.images)  # noqa: E731
    step = TrainingStep(config, model, taught, Ranks(0, 1, DEVICE), form.autocast(), Reporter(False))
    rows = torch.arange(ROWS)
    return lambda images, labels: step(Batch(0, images, labels, rows, rows, labels), LR)


def peer_parts(size: str) -> tuple[nn.Module, torch.optim.Optimizer, ModelEmaV3]:
    torch.manual_seed(0)
    model = timm.create_model(name_of(size), num_classes=CLASSES).to(DEVICE).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=0.05)
    return model, optimizer, ModelEmaV3(model, decay=DECAY)


def with_timm(form: Form, teacher: nn.Module | None) -> Step:
    """timm's train.py without a teacher, or with --kd-distill-type token --kd-token-distill-type hard
    --task-loss-weight 0.5."""
    model, optimizer, average = peer_parts(form.size)
    criterion = LabelSmoothingCrossEntropy(0.1)
    if teacher is None:
        forward = torch.compile(model) if form.compiled else model
        loss_of = lambda images, labels: criterion(forward(images), labels)  # noqa: E731
    else:
        task = TokenDistillationTask(
            model, teacher, criterion, distill_type="hard", task_loss_weight=0.5, device=DEVICE, verbose=False
        )
        task.to(DEVICE).train()
        if form.compiled:
            task.compile()
        loss_of = lambda images, labels: task(images, labels)["loss"]  # noqa: E731

    def step(images: Tensor, labels: Tensor) -> None:
        with form.autocast():
            loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)

    return step


def official(form: Form, teacher: nn.Module) -> Step:
    """The official engine.py and losses.py, in their form: eager, a read and a synchronisation every step."""
    model, _, average = peer_parts(form.size)
    model.set_distilled_training(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.05)
    criterion = LabelSmoothingCrossEntropy(0.1)

    def step(images: Tensor, labels: Tensor) -> None:
        with form.autocast():
            outputs, outputs_kd = model(images)
            base = criterion(outputs, labels)
            with torch.no_grad():
                teacher_outputs = teacher(images)
            loss = base * 0.5 + F.cross_entropy(outputs_kd, teacher_outputs.argmax(dim=1)) * 0.5
        if not np.isfinite(loss.item()):
            raise ArithmeticError("the loss is NaN or infinite")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if ON_CARD:
            torch.cuda.synchronize()
        with torch.no_grad():  # timm 0.3.2's ModelEma: tensor by tensor
            for mine, theirs in zip(average.module.state_dict().values(), model.state_dict().values(), strict=True):
                mine.copy_(mine * DECAY + (1 - DECAY) * theirs)

    return step


def fresh_teacher() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model(TEACHER, num_classes=CLASSES).eval().requires_grad_(False)


def turns(steps: dict[str, Step]) -> dict[str, Callable[[], object]]:
    """Each contender takes `STEPS` steps a turn, on the same batch."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(ROWS, 3, SIZE, SIZE, generator=generator).to(DEVICE)
    labels = torch.randint(CLASSES, (ROWS,), generator=generator).to(DEVICE)

    def turn(step: Step) -> Callable[[], object]:
        def run() -> None:
            repeated(lambda: step(images, labels), STEPS)()
            if ON_CARD:
                torch.cuda.synchronize()

        return run

    return {name: turn(step) for name, step in steps.items()}


def operations(form: Form, teacher: bool) -> float:
    """Operations of one image, two for each multiplication: student forward and backward, teacher forward."""
    images, labels = torch.randn(1, 3, SIZE, SIZE, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    with FlopCounterMode(display=False) as counter:
        with_timm(form._replace(compiled=False), None)(images, labels)
        if teacher:
            fresh_teacher().to(DEVICE)(images)
    return counter.get_total_flops()


def compare(benchmark: BenchmarkFixture, steps: dict[str, Step], form: Form, teacher: bool) -> None:
    details = {
        "model": name_of(form.size), "teacher": TEACHER, "batch": ROWS, "image_size": SIZE, **environment(),
        "dtype": {"fp32": "float32", "bf16": "bfloat16 autocast"}[form.precision], "compiled": form.compiled,
    }  # fmt: skip
    timing: dict[str, Any] = {"rounds": 20, "clock": time.perf_counter, "warmup": 3} if ON_CARD else {"rounds": 5}
    limit = arithmetic_limit(operations(form, teacher)) if form.precision == FORMS[0].precision else None
    interleaved.compare(
        benchmark, turns(steps), **timing, work=ROWS * STEPS, unit="images/s", limit=limit,
        forms=("deit_fast, eager",), **details,
    )  # fmt: skip
    info = benchmark.extra_info
    print(f"\n{benchmark.name}: {info['rate']} images/s, {info['clock']}")


def both_forms(make: Callable[..., Step], name: str, form: Form, *args: object, **options: object) -> dict[str, Step]:
    """The form under its name; on a card that is the compiled form, and the eager form is added."""
    eager = {f"{name}, eager": make(form._replace(compiled=False), *args, **options)} if ON_CARD else {}
    return {name: make(form, *args, **options), **eager}


@pytest.mark.parametrize("form", ALSO_COMPILED, ids=str)
def test_student_only(benchmark: BenchmarkFixture, form: Form) -> None:
    steps = both_forms(ours, "deit_fast", form, None) | both_forms(with_timm, "timm", form, None)
    compare(benchmark, steps, form, teacher=False)


@pytest.mark.parametrize("form", ALSO_BF16, ids=str)
def test_live_teacher(benchmark: BenchmarkFixture, form: Form) -> None:
    peers = both_forms(with_timm, "timm", form, fresh_teacher().to(DEVICE))
    peers["official"] = official(form, fresh_teacher().to(DEVICE))
    compare(benchmark, both_forms(ours, "deit_fast", form, fresh_teacher()) | peers, form, teacher=True)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_cached_labels(benchmark: BenchmarkFixture, form: Form) -> None:
    peers = both_forms(with_timm, "timm", form, fresh_teacher().to(DEVICE))
    compare(benchmark, both_forms(ours, "deit_fast", form, fresh_teacher(), cached=True) | peers, form, teacher=False)
