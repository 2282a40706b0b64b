"""The two drop-in criteria against what they replace: the official code's formulas, and timm's own task."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task import TokenDistillationTask as TimmTask
from torch import Tensor, nn

from deit_kernels import MixedTarget
from deit_kernels.integrations.criterion import DistillationLoss, fused_options
from deit_kernels.integrations.timm_task import TokenDistillationTask

ROWS, CLASSES = 6, 41
PATHS = {
    DistillationLoss: ("deit_fast", "deit_fast.criterion", "deit_kernels.integrations.criterion"),
    TokenDistillationTask: ("deit_fast", "deit_fast.timm_task", "deit_kernels.integrations.timm_task"),
}
CRITERIA = {
    "cross-entropy": nn.CrossEntropyLoss(),
    "smoothed cross-entropy": nn.CrossEntropyLoss(label_smoothing=0.1),
    "timm's smoothed cross-entropy": LabelSmoothingCrossEntropy(0.1),
    "soft targets": SoftTargetCrossEntropy(),
    "binary cross-entropy": BinaryCrossEntropy(smoothing=0.1),
    "summed binary cross-entropy": BinaryCrossEntropy(smoothing=0.1, sum_classes=True),
    "thresholded binary cross-entropy": BinaryCrossEntropy(smoothing=0.1, target_threshold=0.2),
    "binary cross-entropy of probabilities": nn.BCEWithLogitsLoss(),
    "binary cross-entropy whose targets are all 1": BinaryCrossEntropy(smoothing=0.1, target_threshold=0.0),
    "weighted binary cross-entropy": BinaryCrossEntropy(pos_weight=2.0),
    "weighted cross-entropy": nn.CrossEntropyLoss(weight=torch.linspace(0.5, 1.5, CLASSES)),
}


def official_loss(
    base_criterion: nn.Module,
    outputs: tuple[Tensor, Tensor],
    teacher: Tensor,
    labels: Tensor,
    kind: str,
    alpha: float,
    tau: float,
) -> Tensor:
    """What facebookresearch/deit's losses.py computes, in its own words."""
    outputs, outputs_kd = outputs
    base = base_criterion(outputs, labels)
    if kind == "none":
        return base
    if kind == "soft":
        student, teacher = F.log_softmax(outputs_kd / tau, dim=1), F.log_softmax(teacher / tau, dim=1)
        distill = F.kl_div(student, teacher, reduction="sum", log_target=True) * (tau * tau) / outputs_kd.numel()
    else:
        distill = F.cross_entropy(outputs_kd, teacher.argmax(dim=1))
    return base * (1 - alpha) + distill * alpha


@pytest.fixture
def outputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return tuple((3 * torch.randn(ROWS, CLASSES)).requires_grad_() for _ in range(2))


@pytest.fixture
def teacher() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))


def labels_for(criterion: nn.Module) -> Tensor:
    labels = torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(2))
    if isinstance(criterion, SoftTargetCrossEntropy | nn.BCEWithLogitsLoss):
        return mixup_target(labels, CLASSES, lam=0.3, smoothing=0.1)
    return labels


@pytest.mark.parametrize("kind", ["none", "soft", "hard"])
@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_distillation_loss_is_the_official_one(
    criterion: nn.Module, kind: str, outputs: tuple[Tensor, Tensor], teacher: nn.Module
) -> None:
    inputs, labels = torch.randn(ROWS, 3, 2, 2), labels_for(criterion)
    loss = DistillationLoss(criterion, teacher, kind, alpha=0.3, tau=3.0)(inputs, outputs, labels)
    expected = official_loss(criterion, outputs, teacher(inputs).detach(), labels, kind, 0.3, 3.0)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    heads = outputs[: 1 + (kind != "none")]
    gradients = [torch.autograd.grad(one, heads, retain_graph=True) for one in (loss, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_head_of_weight_0_gets_a_gradient_of_zeros(
    kind: str, alpha: float, outputs: tuple[Tensor, Tensor], teacher: nn.Module
) -> None:
    with torch.no_grad():
        outputs[0][0, 3] = -torch.inf  # a class that is masked out
    criterion = DistillationLoss(nn.CrossEntropyLoss(), teacher, kind, alpha, tau=3.0)
    criterion(torch.randn(ROWS, 3, 2, 2), outputs, torch.zeros(ROWS, dtype=torch.int64)).backward()
    idle, learning = outputs if alpha == 1 else outputs[::-1]
    assert learning.grad.any() and idle.grad is not None and not idle.grad.any()


def test_a_mixed_target_is_the_dense_one_that_timm_would_build(
    outputs: tuple[Tensor, Tensor], teacher: nn.Module
) -> None:
    labels = torch.randint(CLASSES, (ROWS,))
    inputs, dense = torch.randn(ROWS, 3, 2, 2), mixup_target(labels, CLASSES, lam=0.3, smoothing=0.1)
    mixed = MixedTarget(labels, labels.flip(0), torch.full((ROWS,), 0.3))
    built = DistillationLoss(SoftTargetCrossEntropy(), teacher, "hard", 0.5, 1.0)(inputs, outputs, dense)
    fused = DistillationLoss(nn.CrossEntropyLoss(label_smoothing=0.1), teacher, "hard", 0.5, 1.0)(
        inputs, outputs, mixed
    )
    torch.testing.assert_close(fused, built, rtol=1e-6, atol=1e-6)


def test_a_binary_cross_entropy_runs_in_the_one_kernel_and_mixed_as_timms_mixup_would_build_it(
    outputs: tuple[Tensor, Tensor], teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = torch.randint(CLASSES, (ROWS,))
    inputs, dense = torch.randn(ROWS, 3, 2, 2), mixup_target(labels, CLASSES, lam=0.3, smoothing=0.1)
    mixed = MixedTarget(labels, labels.flip(0), torch.full((ROWS,), 0.3))
    criterion = BinaryCrossEntropy(smoothing=0.1, target_threshold=0.2)
    expected = official_loss(criterion, outputs, teacher(inputs).detach(), dense, "hard", 0.5, 1.0)
    monkeypatch.setattr(BinaryCrossEntropy, "forward", lambda *_: pytest.fail("the criterion was called"))
    for target in (dense, mixed):
        fused = DistillationLoss(criterion, teacher, "hard", 0.5, 1.0)(inputs, outputs, target)
        torch.testing.assert_close(fused, expected, rtol=1e-6, atol=1e-6)


CALLED = {
    "a sum": (BinaryCrossEntropy(reduction="sum"), None),
    "weights": (BinaryCrossEntropy(weight=torch.ones(CLASSES)), None),
    "smoothed probabilities": (BinaryCrossEntropy(smooth_dense=True), torch.rand(ROWS, CLASSES)),
    "targets that are all 0": (BinaryCrossEntropy(target_threshold=1.0), None),
    "probabilities of another shape": (nn.BCEWithLogitsLoss(), torch.rand(ROWS, 1)),
    "whole numbers": (BinaryCrossEntropy(), torch.ones(ROWS, dtype=torch.int32)),
}


@pytest.mark.parametrize(("criterion", "labels"), CALLED.values(), ids=CALLED)
def test_a_binary_cross_entropy_that_ours_does_not_compute_is_called(
    criterion: nn.Module, labels: Tensor | None
) -> None:
    labels = torch.zeros(ROWS, dtype=torch.int64) if labels is None else labels
    assert fused_options(criterion, torch.zeros(ROWS, CLASSES), labels) is None


def test_weights_of_classes_are_fused_without_a_teacher_only() -> None:
    criterion = nn.CrossEntropyLoss(weight=torch.ones(CLASSES))
    assert fused_options(criterion) is None
    assert fused_options(criterion, alone=True)["weight"] is criterion.weight


def test_the_teacher_gets_no_gradient_and_keeps_its_mode(outputs: tuple[Tensor, Tensor], teacher: nn.Module) -> None:
    criterion = DistillationLoss(nn.CrossEntropyLoss(), teacher.eval(), "soft", 0.5, 2.0)
    criterion(torch.randn(ROWS, 3, 2, 2), outputs, labels_for(nn.CrossEntropyLoss())).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training
    assert outputs[0].grad is not None and outputs[1].grad is not None


def test_without_distillation_one_output_will_do(outputs: tuple[Tensor, Tensor], teacher: nn.Module) -> None:
    labels = labels_for(nn.CrossEntropyLoss())
    loss = DistillationLoss(nn.CrossEntropyLoss(), teacher, "none", 0.5, 1.0)(torch.empty(0), outputs[0], labels)
    torch.testing.assert_close(loss, F.cross_entropy(outputs[0], labels))


def test_bad_arguments_are_named(outputs: tuple[Tensor, Tensor], teacher: nn.Module) -> None:
    base = nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match="distillation_type must be"):
        DistillationLoss(base, teacher, "firm", 0.5, 1.0)
    with pytest.raises(ValueError, match="alpha is a weight"):
        DistillationLoss(base, teacher, "hard", 1.5, 1.0)
    with pytest.raises(ValueError, match="tau is a temperature"):
        DistillationLoss(base, teacher, "soft", 0.5, 0.0)
    with pytest.raises(ValueError, match="needs a model that returns"):
        DistillationLoss(base, teacher, "hard", 0.5, 1.0)(torch.randn(ROWS, 3, 2, 2), outputs[0], labels_for(base))


class Student(nn.Module):
    """The least that timm's task asks of a model with two heads."""

    num_classes, in_chans = CLASSES, 3
    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(12, CLASSES) for _ in range(2))

    def set_distilled_training(self, enable: bool = True) -> None:
        assert enable

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(head(images.flatten(1)) for head in self.heads)


WEIGHTS = {
    "default": {},
    "complementary": {"task_loss_weight": 0.7},
    "independent": {"task_loss_weight": 2.0, "distill_loss_weight": 0.5},
    "labels only": {"task_loss_weight": 1.0},
    "teacher only": {"task_loss_weight": 0.0},
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("distill_type", ["soft", "hard"])
@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_the_task_is_timms(criterion: nn.Module, distill_type: str, weights: dict, teacher: nn.Module) -> None:
    student = Student()
    images, labels = torch.randn(ROWS, 3, 2, 2), labels_for(criterion)
    results = []
    for kind in (TokenDistillationTask, TimmTask):
        task = kind(
            student, teacher, criterion=criterion, distill_type=distill_type, temperature=3.0, verbose=False, **weights
        )
        result = task(images, labels)
        gradients = torch.autograd.grad(result["loss"], list(student.parameters()))
        results.append((result, gradients))
    (ours, our_gradients), (theirs, their_gradients) = results
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    for mine, timms in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(mine, timms, rtol=1e-5, atol=1e-6)


def test_the_task_refuses_weights_that_cannot_be_shared_out(teacher: nn.Module) -> None:
    for weights in ({"task_loss_weight": 1.5}, {"task_loss_weight": 0.0, "distill_loss_weight": 0.0}):
        with pytest.raises(ValueError, match="task_loss_weight and distill_loss_weight"):
            TokenDistillationTask(Student(), teacher, criterion=nn.CrossEntropyLoss(), verbose=False, **weights)


@pytest.mark.parametrize(("kind", "module"), [(kind, module) for kind, modules in PATHS.items() for module in modules])
def test_every_documented_import_gives_the_one_class(kind: type, module: str) -> None:
    assert getattr(importlib.import_module(module), kind.__name__) is kind
