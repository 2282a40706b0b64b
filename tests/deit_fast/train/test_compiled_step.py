"""Compiled: one graph each for student, teacher, loss and moving average, compiled once; also as on a GPU."""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch._subclasses import FakeTensorMode

from deit_fast.model import IMAGENET_NORMALISATION
from deit_fast.ranks.group import Ranks
from deit_fast.run.report import Reporter
from deit_fast.teacher.engine import TeacherEngine
from deit_fast.train.step import TrainingStep, losses_of
from deit_fast.weights.build import Frozen
from deit_kernels import MixedTarget, TopK
from tests.deit_fast.train.test_step import ALONE, CLASSES, CONFIG, ROWS, SOFT, batch, student, taught_by

COMPILED = CONFIG.replace(compile="on")


@pytest.fixture(autouse=True)
def quick_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Traced by Dynamo and AOTAutograd as always; the code is not generated, which takes a minute."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield
    torch._dynamo.reset()


def compiled_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def step_of(config, taught=None) -> TrainingStep:
    return TrainingStep(config, student(config.model.drop_path), taught, ALONE, nullcontext(), Reporter(False))


@pytest.mark.parametrize("changes", [{}, {"micro_batch": 4}, SOFT], ids=["hard", "sliced", "soft"])
def test_student_loss_and_average_are_one_graph_each_and_never_compiled_again(changes: dict) -> None:
    config = COMPILED.replace(**changes)
    module = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, CLASSES)).requires_grad_(False)
    step = step_of(config, taught_by(module))
    reference = step_of(config.replace(compile="off"), taught_by(module))
    for number in range(5):
        result, expected = step(batch(number), 0.01 / (number + 1)), reference(batch(number), 0.01 / (number + 1))
        torch.testing.assert_close(result.losses.loss, expected.losses.loss, rtol=1e-4, atol=1e-5)
        if number == 1:
            warm = compiled_graphs()
    assert compiled_graphs() == warm == 3
    assert not counters["graph_break"]


def test_mixed_targets_are_one_graph_too() -> None:
    step = step_of(COMPILED.replace(distill="none", teacher=""))
    for number in range(4):
        step(batch(number, mixed=True), 0.01)
    assert compiled_graphs() == 3 and not counters["graph_break"]


@pytest.mark.parametrize("name", ["regnety_002", "tf_efficientnet_lite0", "test_vit"])
def test_a_teacher_is_one_graph_and_never_compiled_again(name: str) -> None:
    size = 160 if name == "test_vit" else 32
    teacher = Frozen(timm.create_model(name, num_classes=CLASSES), ((0.4, 0.5, 0.6), IMAGENET_NORMALISATION[1]))
    options = {"image_size": size, "device": torch.device("cpu")}
    engine = TeacherEngine(teacher, compiled=True, **options)
    plain = TeacherEngine(teacher, **options)
    for seed in range(3):
        images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(engine(images), plain(images))
    assert compiled_graphs() == 1 and not counters["graph_break"]


def capture(function, *arguments: object) -> object:
    """Run `function` on fake CUDA tensors as one graph: no driver is needed, and a read of a value fails."""
    counter = CompileCounter()
    with torch._dynamo.config.patch(error_on_recompile=True):
        result = torch._dynamo.optimize(counter, nopython=True)(function)(*arguments)
    assert counter.frame_count == 1
    return result


@pytest.mark.parametrize("layout", ["nchw", "patches"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
def test_the_students_cuda_branch_is_one_graph(layout: str, dtype: torch.dtype) -> None:
    model = student().to(dtype)  # as autocast computes on a GPU; without a driver it is off
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cuda")
        shape = (ROWS, 3, 16, 16) if layout == "nchw" else (ROWS, 4, 192)
        images, scales = torch.empty(shape, dtype=dtype, device="cuda"), torch.empty(2, 2, ROWS, device="cuda")
        for logits in capture(model, images, scales):
            assert (logits.shape, logits.dtype, logits.device.type) == ((ROWS, CLASSES), dtype, "cuda")


def hard(rows: int) -> Tensor:
    return torch.zeros(rows, dtype=torch.int64, device="cuda")


@pytest.mark.parametrize("counted", [False, True], ids=["whole", "sliced, mixed ones weighted"])
@pytest.mark.parametrize("taught", ["labels", "logits", "top-k", "nobody"])
@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "mixed"])
def test_the_losss_cuda_branch_is_one_graph(taught: str, mixed: bool, counted: bool) -> None:
    changes = SOFT if taught in ("logits", "top-k") else {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        outputs = tuple(torch.empty(ROWS, CLASSES, device="cuda", requires_grad=True) for _ in range(2))
        target = hard(ROWS)
        if mixed:
            target = MixedTarget(target, hard(ROWS), torch.empty(ROWS, device="cuda"))
        teacher_labels = {
            "labels": hard(ROWS),
            "logits": torch.empty(ROWS, CLASSES, device="cuda"),
            "top-k": TopK(hard(2 * ROWS).view(ROWS, 2), torch.empty(ROWS, 2, device="cuda"), 2.0),
            "nobody": None,
        }
        weight = torch.empty(CLASSES, device="cuda") if counted and mixed else None
        count = torch.empty(() if weight is None else 2, device="cuda") if counted else None
        function = partial(losses_of, CONFIG.replace(**changes).distill, weight=weight)
        losses = capture(function, outputs, teacher_labels[taught], target, count)
        assert losses.loss.device.type == "cuda" and losses.loss.shape == ()


def test_among_ranks_the_student_is_compiled_inside_the_gradients_exchange(monkeypatch) -> None:
    wrapped = []

    class Recorded(nn.Module):
        no_sync = nullcontext

        def __init__(self, module: nn.Module, **options: object) -> None:
            super().__init__()
            wrapped.append(module)

    monkeypatch.setattr("deit_fast.train.step.DistributedDataParallel", Recorded)
    TrainingStep(COMPILED, student(), None, Ranks(0, 2, ALONE.device), nullcontext(), Reporter(False))
    assert isinstance(wrapped[0], torch._dynamo.OptimizedModule)
