"""The training step: its arithmetic whatever the slices, and that it waits for no device."""

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from deit_fast.config import Config
from deit_fast.data import IGNORE, Batch
from deit_fast.data.batch import Seconds, slices
from deit_fast.model import IMAGENET_NORMALISATION, create_model
from deit_fast.ranks.group import Ranks
from deit_fast.run.report import Reporter
from deit_fast.teacher.cache import LabelCache
from deit_fast.teacher.engine import TeacherEngine
from deit_fast.teacher.labels import TeacherLabels
from deit_fast.train.meter import Meter
from deit_fast.train.precision import autocast, precision
from deit_fast.train.step import TrainingStep
from deit_fast.weights.build import Frozen
from deit_kernels import MixedTarget

ROWS, CLASSES = 12, 5
ALONE = Ranks(0, 1, torch.device("cpu"))
CONFIG = Config(
    model="deit_tiny_distilled_patch16_224", distill="hard", teacher="x", batch_size=ROWS, drop_path=0.2, lr=0.05,
    ema_decay=0.9, compile="off", image_size=16,
)  # fmt: skip
SOFT = {"distill": "soft", "alpha": 0.3, "tau": 2.0, "kl_normalizer": "batch"}
NONE = {"distill": "none", "teacher": ""}


def student(drop_path: float = 0.2) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "width": 32, "depth": 2, "heads": 2, "drop_path_rate": drop_path}
    return create_model("deit_tiny_distilled_patch16_224", classes=CLASSES, **sizes).train()


def teacher() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, CLASSES)).requires_grad_(False)


def taught_by(module: nn.Module) -> Callable[[Batch], Tensor]:
    return lambda batch: module(batch.images)


def batch(step: int = 0, mixed: bool = False, unreadable: tuple[int, ...] = ()) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(ROWS, 3, 16, 16, generator=generator)
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    labels[list(unreadable)] = IGNORE
    target: Tensor | MixedTarget = labels
    if mixed:
        target = MixedTarget(labels, labels.flip(0), torch.rand(ROWS, generator=generator))
    return Batch(step, images, labels, torch.arange(ROWS), torch.arange(ROWS), target)


def step_of(config: Config, model: nn.Module | None = None, weights: Tensor | None = None) -> TrainingStep:
    taught = taught_by(teacher()) if config.distill.distill != "none" else None
    model = model or student(config.model.drop_path)
    return TrainingStep(config, model, taught, ALONE, nullcontext(), Reporter(False), weights)


WEIGHTS = torch.tensor([0.0, 0.1, 0.2, 1.0, 5.0], dtype=torch.float64)
CASES = ["hard", "soft", "none", "mixed", "unreadable", "a slice without a label"]


@pytest.mark.parametrize("case", [*CASES, "weighted", "weighted bce", "weighted mixed"])
def test_the_step_is_the_same_in_slices(case: str) -> None:
    changes = {"soft": SOFT, "none": NONE, "weighted bce": {"bce_loss": True, "label_smoothing": 0.0}}.get(case, {})
    unreadable = {"unreadable": (2, 7, 8), "a slice without a label": (3, 4, 5), "weighted": (3, 4, 5)}.get(case, ())
    config, weights = CONFIG.replace(**changes), WEIGHTS if "weighted" in case else None
    whole, sliced = step_of(config, weights=weights), step_of(config.replace(micro_batch=3), weights=weights)
    assert (whole.fit.slices, sliced.fit.slices) == (1, 4)
    given = batch(mixed="mixed" in case, unreadable=unreadable)
    expected, result = whole(given, 0.01), sliced(given, 0.01)
    for value, wanted in zip(result.losses, expected.losses, strict=True):
        assert (value is None) == (wanted is None)
        torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(result.grad_norm, expected.grad_norm)
    # AdamW's first update is ± the rate: compare what it has learnt of the gradient instead.
    for mine, theirs in zip(sliced.model.parameters(), whole.model.parameters(), strict=True):
        state, wanted = sliced.optimizer.state[mine], whole.optimizer.state[theirs]
        assert state.keys() == wanted.keys()
        if state:  # a head that nobody teaches has none
            torch.testing.assert_close(state["exp_avg"], wanted["exp_avg"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("mixed", [False, True])
def test_class_weights_are_those_of_torch_and_change_no_score(mixed: bool) -> None:
    config, weights = CONFIG.replace(**NONE, drop_path=0.0), WEIGHTS.float()
    given = batch(mixed=mixed, unreadable=() if mixed else (2, 7))
    plain, weighted = step_of(config)(given, 0.01), step_of(config, weights=WEIGHTS)(given, 0.01)
    logits, smoothed = student(drop_path=0.0)(given.images)[0], {"label_smoothing": 0.1, "reduction": "none"}
    parts = [(given.labels, 1.0)]
    if mixed:
        parts = [(given.target.labels, given.target.lam), (given.target.partner_labels, 1 - given.target.lam)]
    costs = sum(share * nn.functional.cross_entropy(logits, labels, weights, **smoothed) for labels, share in parts)
    divisor = sum((share * weights[labels.clamp_min(0)])[given.labels != IGNORE].sum() for labels, share in parts)
    torch.testing.assert_close(weighted.losses.loss, costs.sum().detach() / divisor)
    assert weighted.losses.top1 == plain.losses.top1 and weighted.losses.loss != plain.losses.loss


def test_a_batch_of_classes_of_weight_0_teaches_nothing_and_is_no_bad_step() -> None:
    given = batch()
    step = step_of(CONFIG.replace(label_smoothing=0.0), weights=WEIGHTS)
    result = step(given._replace(target=torch.zeros_like(given.labels), labels=torch.zeros_like(given.labels)), 0.01)
    assert result.finite and result.losses.loss == result.grad_norm == 0


@pytest.mark.parametrize(
    ("rows", "micro_batch", "parts"), [(12, 0, 1), (12, 12, 1), (12, 99, 1), (12, 5, 3), (12, 1, 12), (7, 3, 7)]
)
def test_slices_are_equal_and_no_larger_than_asked(rows: int, micro_batch: int, parts: int) -> None:
    assert slices(rows, micro_batch) == parts


def test_the_norm_of_the_gradient_and_whether_it_is_a_number() -> None:
    step = step_of(CONFIG.replace(drop_path=0.0, distill="none", teacher=""))
    given = batch()
    reference = student(drop_path=0.0)
    cls_logits, _ = reference(given.images)
    nn.functional.cross_entropy(cls_logits, given.labels, label_smoothing=0.1).backward()
    gradients = [parameter.grad.flatten() for parameter in reference.parameters() if parameter.grad is not None]
    result = step(given, 0.01)
    torch.testing.assert_close(result.grad_norm, torch.cat(gradients).norm(), rtol=1e-4, atol=0)
    assert result.finite
    assert not step(given._replace(images=given.images * torch.inf), 0.01).finite


class Cramped(nn.Module):
    """The student on a device whose memory holds only so many images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner, self.most, self.seen = student(drop_path=0.0), most, []

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        self.seen.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(images)


def test_short_of_memory_the_micro_batch_is_halved_and_the_global_batch_kept(capsys) -> None:
    config = CONFIG.replace(drop_path=0.0)
    cramped, roomy = Cramped(most=4), step_of(config)
    step = TrainingStep(config, cramped, taught_by(teacher()), ALONE, nullcontext(), Reporter(True))
    expected = roomy(batch(), 0.01)
    torch.testing.assert_close(step(batch(), 0.01).losses.loss, expected.losses.loss)
    assert cramped.seen == [12, 6, *[3] * 4]
    step(batch(1), 0.01)
    assert cramped.seen[6:] == [3] * 4
    said = capsys.readouterr().out
    assert "out of memory with 12 images at once: 6 from now on, and still 12 a step (type --micro-batch 6" in said
    assert "out of memory with 6 images at once: 3 from now on" in said


def test_short_of_memory_batch_norm_counts_a_step_once() -> None:
    class Normed(Cramped):
        def __init__(self, most: int) -> None:
            super().__init__(most)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            return super().forward(self.norm(images))

    config = CONFIG.replace(drop_path=0.0)
    roomy, cramped = step_of(config.replace(micro_batch=3), Normed(99)), step_of(config, Normed(most=4))
    for step in (roomy, cramped):
        step(batch(), 0.01)
    assert (roomy.fit.slices, cramped.fit.slices) == (4, 4)
    for mine, expected in zip(cramped.model.buffers(), roomy.model.buffers(), strict=True):
        torch.testing.assert_close(mine, expected)


def test_short_of_memory_for_one_image_the_run_ends_with_a_sentence() -> None:
    step = step_of(CONFIG, Cramped(most=0))
    with pytest.raises(ValueError, match=r"not even one image at a time of 16 x 16 pixels fits .* --image-size"):
        step(batch(), 0.01)


def test_among_ranks_one_that_is_short_of_memory_later_ends_the_run_with_a_sentence() -> None:
    step = step_of(CONFIG, Cramped(most=12))
    step(batch(), 0.01)
    step.model.most, step.fit._ranks = 4, Ranks(1, 2, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"rank 1 ran out of memory with 12 images at once.* add --micro-batch 6"):
        step(batch(1), 0.01)
    assert all(parameter.grad is None for parameter in step.model.parameters())


def test_the_trial_before_the_first_step_of_several_ranks_leaves_no_gradient_behind() -> None:
    plain, tried = step_of(CONFIG), step_of(CONFIG)
    tried.fit._tried = False
    assert torch.equal(tried(batch(), 0.01).grad_norm, plain(batch(), 0.01).grad_norm)


def test_a_scaled_loss_trains_the_same_weights() -> None:
    plain, scaled = step_of(CONFIG), step_of(CONFIG)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for number in range(3):
        expected, result = plain(batch(number), 0.01), scaled(batch(number), 0.01)
        torch.testing.assert_close(result.grad_norm, expected.grad_norm)
        torch.testing.assert_close(result.losses.loss, expected.losses.loss)
    for mine, theirs in zip(scaled.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    before = [parameter.clone() for parameter in scaled.model.parameters()]
    overflowing = batch(3)
    assert not scaled(overflowing._replace(images=overflowing.images * torch.inf), 0.01).finite
    assert all(map(torch.equal, before, scaled.model.parameters())), "an overflow must not reach the weights"


def test_the_global_count_of_rows_is_summed_while_the_forward_pass_runs() -> None:
    order: list[str] = []

    class Recorded(Ranks):
        def begin_total(self, counts: Tensor) -> Callable[[], Tensor]:
            order.append("begin")

            def total() -> Tensor:
                order.append("wait")
                return counts

            return total

    model = student(drop_path=0.0)
    model.register_forward_hook(lambda *_: order.append("forward"))
    ranks = Recorded(0, 1, ALONE.device)
    config = CONFIG.replace(drop_path=0.0)
    TrainingStep(config, model, taught_by(teacher()), ranks, nullcontext(), Reporter(False))(batch(), 0.01)
    assert order == ["begin", "forward", "wait"]


@pytest.mark.parametrize(("chosen", "between"), [("bf16", torch.float32), ("bf16-residual", torch.bfloat16)])
def test_the_sums_between_blocks(chosen: str, between: torch.dtype) -> None:
    model, seen = student(drop_path=0.5), []
    model.residual_dtype = torch.bfloat16 if chosen == "bf16-residual" else None
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with autocast(chosen, ALONE.device):
        logits = model(batch().images)
    assert seen == [between] * len(model.blocks)
    sum(head.float().sum() for head in logits).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="fp16 needs a CUDA GPU, this is a CPU: type --precision bf16"):
        precision("fp16", ALONE, None, Reporter(False))


@pytest.mark.parametrize(
    ("capabilities", "chosen", "reason"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bf16", "this processor has AMX tiles"),
        ({"amx_bf16": False, "avx512_bf16": True}, "fp32", "bf16 would be no faster here: it needs a GPU that has it"),
    ],
)
def test_the_processor_decides_the_precision(capabilities, chosen: str, reason: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision("auto", ALONE, None, Reporter(True)) == chosen
    assert reason in " ".join(capsys.readouterr().out.split())
    assert precision("fp32", ALONE, None, Reporter(False)) == "fp32"


class NoWaiting(TorchDispatchMode):
    """Fails where the host would have to wait for the device: to read a number, or to learn a shape."""

    WAITING = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "bincount")

    def __torch_dispatch__(self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
        name = function.overloadpacket.__name__.removesuffix("_static")
        assert name not in self.WAITING and not name.startswith("_unique"), f"{function} waits for the device"
        index = next((arg for arg in args[1:2] if name in ("index", "index_put_")), ())
        assert not any(part is not None and part.dtype == torch.bool for part in index), f"{function} with a mask"
        return function(*args, **(kwargs or {}))


class Waits:
    seconds = Seconds()
    labelled = 0


@pytest.mark.parametrize(
    ("changes", "mixed", "micro_batch"),
    [({}, False, 4), ({}, True, 0), (SOFT, False, 0), (SOFT, True, 4), (NONE, False, 0), (NONE, True, 4)],
)
def test_a_steady_step_never_waits_for_the_device(changes: dict, mixed: bool, micro_batch: int) -> None:
    step = step_of(CONFIG.replace(micro_batch=micro_batch, **changes))
    batches = Waits()
    meter = Meter(step.clock, batches, ALONE, batch_size=ROWS, total_steps=9, taught=True)
    batches.labelled = ROWS
    for number in range(4):
        meter.add(step(batch(number, mixed), 0.01))
    with NoWaiting():
        meter.add(step(batch(4, mixed), 0.02))
    assert meter.row(5, 0.5, 0.02)["loss"] > 0


@pytest.mark.parametrize("replayed", [False, True], ids=["filling a cache", "from a cache"])
def test_neither_the_teacher_nor_its_cache_waits_for_the_device(tmp_path: Path, replayed: bool) -> None:
    engine = TeacherEngine(Frozen(teacher(), IMAGENET_NORMALISATION), image_size=16, device=ALONE.device)
    options = {"classes": CLASSES, "say": print, "repair": True}
    cache = LabelCache.open(tmp_path, {}, range(ROWS), **options)
    with TeacherLabels(engine, cache, ALONE.device) as labels:
        expected = [labels(batch(number)) for number in range(3)]
    if replayed:
        labels = TeacherLabels(None, LabelCache.open(tmp_path, {}, range(ROWS), **options), ALONE.device)
        assert torch.equal(labels(batch(0)), expected[0])
    step = TrainingStep(CONFIG, student(), labels, ALONE, nullcontext(), Reporter(False))
    step(batch(1), 0.01)
    with NoWaiting():
        step(batch(2), 0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_on_a_card_a_steady_step_never_waits(compiled: str) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    ranks = dataclasses.replace(ALONE, device=device)
    own = Frozen(teacher(), IMAGENET_NORMALISATION)
    engine = TeacherEngine(own, image_size=16, device=device, compiled=compiled == "on")
    config = CONFIG.replace(compile=compiled)
    autocast = torch.autocast("cuda", torch.bfloat16)
    step = TrainingStep(
        config, student().to(device), TeacherLabels(engine, None, device), ranks, autocast, Reporter(False)
    )
    batches = [batch(number) for number in range(6)]
    batches = [each._replace(images=each.images.to(device), labels=each.labels.to(device)) for each in batches]
    batches = [each._replace(target=each.labels) for each in batches]
    for each in batches[:5]:
        step(each, 0.01)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(batches[5], 0.02)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_guard_sees_what_waits() -> None:
    values = torch.tensor([1.0, 2.0])
    for waiting in (lambda: values[0].item(), lambda: bool(values.sum()), lambda: values[values > 1], values.nonzero):
        with pytest.raises(AssertionError, match=r"waits for the device|with a mask"), NoWaiting():
            waiting()
