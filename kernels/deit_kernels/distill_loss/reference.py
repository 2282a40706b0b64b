"""The losses written out in plain PyTorch: what runs without a kernel, and the oracle of Triton and C++ (float64 too).

Everything is a cross-entropy or a KL divergence between a dense probability vector (B, C) and a softmax, or a binary
cross-entropy between that vector and a sigmoid. The kernels compute the same without building the vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class MixedTarget(NamedTuple):
    """A mixup or CutMix target that is never built: lam · onehot(labels) + (1 − lam) · onehot(partner_labels).

    Attributes:
        labels, partner_labels: int64 (B,).
        lam: float32 (B,) in [0, 1].
    """

    labels: Tensor
    partner_labels: Tensor
    lam: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> MixedTarget:
        """The same target on `device`."""
        return MixedTarget(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))


class TopK(NamedTuple):
    """The K largest probabilities of a teacher at temperature tau; the rest of the mass is spread evenly.

    Attributes:
        indices: int64 (B, K), distinct classes in each row.
        probs: float (B, K), their probabilities at temperature tau. Where they sum to more than 1 (rounding of a 16-bit
            cache), they are divided by their sum.
        tau: the temperature at which they were taken.
    """

    indices: Tensor
    probs: Tensor
    tau: float


class LossCall(NamedTuple):
    """One call of the loss, as the registered ops receive it: the loss is (1 − alpha) · base + alpha · distillation.

    Attributes:
        cls: logits (B, C) of the base term; None without a base term.
        dist: logits (B, C) of the distillation term; None: it is computed on `cls`.
        teacher: logits (B, C), labels int64 (B,), or the classes int64 (B, K) of a TopK; None: no distillation term.
        teacher_probs: the probabilities (B, K) of a TopK.
        target: labels int64 (B,) or probabilities (B, C); None: no base term, and every row counts.
        partner, lam: the rest of a MixedTarget.
        weight: of the classes (C,). The base term takes a class times its weight, a row's distillation term is
            multiplied by the weight of its target (`target_weights`).
        soft: the distillation term is τ² · KL(teacher ‖ student), else the cross-entropy with the teacher's label.
        numel: divide the KL by C as well.
        mean: average over the rows that count, else one loss a row.
        binary: the base term is a binary cross-entropy with a sigmoid for each class.
        target_threshold: a binary target is 1 above it and 0 elsewhere; None: it is the probability itself.
        sum_classes: a row's binary cross-entropy is the sum over its classes, else their mean.
    """

    cls: Tensor | None = None
    dist: Tensor | None = None
    teacher: Tensor | None = None
    teacher_probs: Tensor | None = None
    target: Tensor | None = None
    partner: Tensor | None = None
    lam: Tensor | None = None
    weight: Tensor | None = None
    soft: bool = False
    alpha: float = 0.0
    tau: float = 1.0
    numel: bool = False
    label_smoothing: float = 0.0
    teacher_smoothing: float = 0.0
    ignore_index: int = -100
    mean: bool = True
    binary: bool = False
    target_threshold: float | None = None
    sum_classes: bool = False

    @property
    def logits(self) -> Tensor:
        """Whichever head there is: both have the same shape and device."""
        return _present(self.dist if self.cls is None else self.cls)

    @property
    def student(self) -> Tensor:
        """The logits that are distilled."""
        return _present(self.cls if self.dist is None else self.dist)

    @property
    def divides_by_weights(self) -> bool:
        """A mean is over the weights of the rows, as F.cross_entropy does it for labels, not over their number."""
        return self.weight is not None and not self.binary and _present(self.target).dtype == torch.int64

    @property
    def statistics(self) -> int:
        """Columns of the statistics."""
        return STATISTICS if self.weight is None else STATISTICS + 1

    @property
    def exact_dtype(self) -> torch.dtype:
        """What the loss is computed and returned in: float64 for float64 logits, everything else float32."""
        wide = any(head is not None and head.dtype == torch.float64 for head in (self.cls, self.dist))
        return torch.float64 if wide else torch.float32

    @property
    def label_tensors(self) -> list[tuple[str, Tensor]]:
        """The label vectors with the name that an error calls them by."""
        mixed = self.partner is not None
        named = [
            ("target.labels" if mixed else "target", self.target),
            ("target.partner_labels", self.partner),
            ("teacher", self.teacher if self.teacher_probs is None else None),
        ]
        return [(name, labels) for name, labels in named if labels is not None and labels.dtype == torch.int64]


# Columns of the per-row statistics that forward saves for backward: (B, 8), or (B, 9) with weights of classes. A
# softmax is its largest logit and the rest, the sum of the exponentials of all other classes relative to it. The
# largest class has probability p = 1 / (1 + rest); what p lacks to 1 is rest / (1 + rest), whose digits p itself has
# lost.
CLS_MAX, CLS_REST, DIST_MAX, DIST_REST, TEACHER_MAX, TEACHER_REST = range(6)
TARGET_SUM, ROW_WEIGHT = 6, 7
TEACHER_LABEL = TEACHER_MAX  # hard mode has no teacher softmax; a label is exact in float32 below 2**24
STATISTICS = 8
TARGET_WEIGHT = 8  # of `target_weights`; 0 in a row that is ignored


def row_weights(call: LossCall) -> Tensor:
    """1 for a row that counts, 0 for an ignored one, NaN where a value cannot be right (B,).

    A row is ignored when any of its labels is `ignore_index`. It is NaN when a label or TopK class is outside [0, C),
    when lam is outside [0, 1], or when the arg-max of a teacher row with a NaN is asked for.
    """
    rows, classes = call.logits.shape
    ignored = torch.zeros(rows, dtype=torch.bool, device=call.logits.device)
    bad = torch.zeros_like(ignored)
    teacher = call.teacher
    for _, labels in call.label_tensors:
        ignored = ignored | (labels == call.ignore_index)
        bad = bad | (labels < 0) | (labels >= classes)
    if call.lam is not None:
        bad = bad | ~((call.lam >= 0) & (call.lam <= 1))
    if teacher is not None and call.teacher_probs is not None:
        bad = bad | ((teacher < 0) | (teacher >= classes)).any(1)
    elif teacher is not None and teacher.is_floating_point() and not call.soft:
        bad = bad | teacher.isnan().any(1)
    weight = torch.ones(rows, dtype=call.exact_dtype, device=call.logits.device)
    return weight.masked_fill(bad, torch.nan).masked_fill(ignored, 0.0)


def target_probabilities(call: LossCall) -> Tensor:
    """The base term's target (B, C), smoothed, (1 − ε) · target + ε / C, and after that compared with the threshold."""
    classes, target = call.logits.shape[1], _present(call.target)
    if target.dtype != torch.int64:
        probs = target.to(call.exact_dtype)
    else:
        probs = _one_hot(target, classes, call.exact_dtype)
        if call.partner is not None and call.lam is not None:
            lam = call.lam.to(call.exact_dtype)[:, None]
            probs = lam * probs + (1 - lam) * _one_hot(call.partner, classes, call.exact_dtype)
    probs = _smoothed(probs, call.label_smoothing)
    return probs if call.target_threshold is None else (probs > call.target_threshold).to(probs.dtype)


def target_weights(call: LossCall) -> Tensor:
    """Σ w t of every row's target t before smoothing (B,): the weight of its label, or of two in their shares."""
    return _by_class(call, target_probabilities(call._replace(label_smoothing=0.0, target_threshold=None))).sum(1)


def teacher_labels(call: LossCall) -> Tensor:
    """Hard mode's labels (B,); the arg-max takes the lowest of equal classes."""
    teacher = _present(call.teacher)
    return teacher if teacher.dtype == torch.int64 else teacher.argmax(1)


def soft_teacher(call: LossCall) -> tuple[Tensor, float]:
    """Soft mode's teacher (B, C) and its temperature; of a TopK, its log-probabilities at temperature 1."""
    teacher = _present(call.teacher)
    if call.teacher_probs is None:
        return teacher.to(call.exact_dtype), call.tau
    classes = call.logits.shape[1]
    probs = call.teacher_probs.to(call.exact_dtype)
    rest = (1 - probs.sum(1, keepdim=True)).clamp_min(0) / max(classes - probs.shape[1], 1)
    return rest.expand(-1, classes).scatter(1, teacher.clamp(0, classes - 1), probs).log(), 1.0


def loss_terms(call: LossCall) -> tuple[Tensor, Tensor, Tensor]:
    """Base term, distillation term and weight of every row (B,), before the last is applied; differentiable."""
    weight = row_weights(call)
    base = distill = torch.zeros_like(weight)
    if call.cls is not None:
        cls, target = call.cls.to(weight.dtype), target_probabilities(call)
        if call.binary:
            base = _by_class(call, _binary_cross_entropy(cls, target)).sum(1) * base_scale(call)
        else:
            base = _cross_entropy(cls, _by_class(call, target))
    if call.teacher is not None:
        student = call.student.to(weight.dtype)
        if call.soft:
            distill = _divergence(student, call.tau, *soft_teacher(call)) * kl_scale(call)
        else:
            distill = _cross_entropy(student, _teacher_target(call, teacher_labels(call)))
        if call.weight is not None:
            distill = _times(distill, target_weights(call))
    return base, distill, weight


def divisors(call: LossCall, weight: Tensor) -> Tensor:
    """What each row adds to the divisor of a mean (B,), from its `row_weights`."""
    counts = weight != 0
    return torch.where(counts, target_weights(call), 0.0) if call.divides_by_weights else counts.to(weight.dtype)


def loss(call: LossCall) -> Tensor:
    """The loss alone, a scalar or (B,); differentiable as often as asked."""
    base, distill, weight = loss_terms(call)
    divisor = divisors(call, weight).sum() if call.mean else None
    return weighted(reduced(base, weight, divisor), reduced(distill, weight, divisor), call.alpha)


def base_scale(call: LossCall) -> float:
    """What the sum over a row's classes is multiplied by in the base term."""
    return 1 / call.logits.shape[1] if call.binary and not call.sum_classes else 1


def kl_scale(call: LossCall) -> float:
    """What the KL divergence of a row is multiplied by."""
    return call.tau**2 / (call.logits.shape[1] if call.numel else 1)


def reduced(rows: Tensor, weight: Tensor, divisor: Tensor | None) -> Tensor:
    """Rows that count, averaged (NaN when none does, as F.cross_entropy) or as they are."""
    rows = torch.where(weight == 0, 0.0, rows * weight)
    return rows if divisor is None else rows.sum() / divisor


def weighted(base: Tensor, distill: Tensor, alpha: float) -> Tensor:
    """The loss from its two terms; a term of weight 0 contributes nothing even when it is infinite."""
    if alpha == 0:
        return base.clone()
    return distill.clone() if alpha == 1 else (1 - alpha) * base + alpha * distill


def forward(call: LossCall) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, base term, distillation term, statistics, divisor of the mean), as the kernels give them.

    The divisor is a scalar, and empty for losses that are not averaged.
    """
    base, distill, weight = loss_terms(call)
    divisor = divisors(call, weight).sum() if call.mean else None
    base, distill = reduced(base, weight, divisor), reduced(distill, weight, divisor)
    statistics = torch.zeros(*weight.shape, call.statistics, dtype=weight.dtype, device=weight.device)
    statistics[:, ROW_WEIGHT] = weight
    if call.weight is not None:
        statistics[:, TARGET_WEIGHT] = torch.where(weight == 0, 0.0, target_weights(call))
    if call.cls is not None and not call.binary:  # a sigmoid needs its own logit only
        _save_softmax(statistics, CLS_MAX, call.cls.to(weight.dtype), 1.0)
        statistics[:, TARGET_SUM] = _by_class(call, target_probabilities(call)).sum(1)
    if call.teacher is not None:
        _save_softmax(statistics, DIST_MAX, call.student.to(weight.dtype), call.tau if call.soft else 1.0)
        if call.soft:
            _save_softmax(statistics, TEACHER_MAX, *soft_teacher(call))
        else:
            statistics[:, TEACHER_LABEL] = teacher_labels(call).to(weight.dtype)
    count = weight.new_empty(0) if divisor is None else divisor
    return weighted(base, distill, call.alpha), base, distill, statistics, count


def backward(
    grad: Tensor, statistics: Tensor, count: Tensor, call: LossCall, need_cls: bool, need_dist: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the loss for `cls` and `dist`, where one is needed.

    For a softmax p and a target t, d(−Σ t log p)/dx = p Σt − t; for the KL at temperature τ, τ² · (q − p_teacher) / τ;
    for a sigmoid, p − t. Where p is over 1/2, the difference is taken between what both sides lack to 1. With weights w
    of the classes, t is w t in the first, and the last is multiplied by w.
    """
    weight = statistics[:, ROW_WEIGHT]
    scale = torch.where(weight == 0, 0.0, (grad / count if call.mean else grad) * weight)[:, None]
    base = distill = None
    if call.cls is not None and call.alpha < 1:
        target = target_probabilities(call)
        if call.binary:
            slope = _by_class(call, _binary_slope(call.cls.to(weight.dtype), target)) * base_scale(call)
        else:
            target = _by_class(call, target)
            probs, missing = _saved_softmax(statistics, CLS_MAX, call.cls.to(weight.dtype), 1.0)
            total = statistics[:, TARGET_SUM, None]
            slope = torch.where(missing < 1, (total - target) - missing * total, probs * total - target)
        base = torch.where(scale == 0, 0.0, scale * (1 - call.alpha) * slope)
    if call.teacher is not None and call.alpha > 0:
        student = call.student.to(weight.dtype)
        probs, missing = _saved_softmax(statistics, DIST_MAX, student, call.tau if call.soft else 1.0)
        if call.soft:
            target, target_missing = _saved_softmax(statistics, TEACHER_MAX, *soft_teacher(call))
        else:
            target = _teacher_target(call, statistics[:, TEACHER_LABEL].nan_to_num().long())
            target_missing = 1 - target
        both = (missing < 1) & (target_missing < 1)
        slope = torch.where(both, target_missing - missing, probs - target)
        if call.soft:
            slope = slope * (kl_scale(call) / call.tau)
        if call.weight is not None:
            scale = _times(scale, statistics[:, TARGET_WEIGHT, None])
        distill = torch.where(scale == 0, 0.0, scale * call.alpha * slope)
    if call.dist is None:  # both terms are on cls
        base = distill if base is None else base if distill is None else base + distill
    return (
        _present(base).to(call.cls.dtype) if need_cls and call.cls is not None else None,
        _present(distill).to(call.dist.dtype) if need_dist and call.dist is not None else None,
    )


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "the checks let no call through that lacks it"
    return tensor


def _one_hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    # A label outside [0, C) is not read: it gives a row of zeros, and `row_weights` makes the loss NaN.
    return (labels[:, None] == torch.arange(classes, device=labels.device)).to(dtype)


def _smoothed(probs: Tensor, smoothing: float) -> Tensor:
    return (1 - smoothing) * probs + smoothing / probs.shape[1] if smoothing else probs


def _teacher_target(call: LossCall, labels: Tensor) -> Tensor:
    return _smoothed(_one_hot(labels, call.logits.shape[1], call.exact_dtype), call.teacher_smoothing)


def _by_class(call: LossCall, values: Tensor) -> Tensor:
    return values if call.weight is None else _times(values, call.weight.to(call.exact_dtype))


def _times(values: Tensor, weight: Tensor) -> Tensor:
    # A weight of 0 takes nothing from an infinite term.
    return torch.where(weight == 0, 0.0, weight * values)


def _cross_entropy(logits: Tensor, probs: Tensor) -> Tensor:
    # A class of probability 0 takes nothing from a logit of −inf; 0 · −inf would be NaN.
    return -torch.where(probs == 0, 0.0, probs * logits.log_softmax(1)).sum(1)


def _binary_cross_entropy(logits: Tensor, probs: Tensor) -> Tensor:
    # A share of 0 takes nothing from an infinite logit, neither the target's nor what it lacks to 1.
    there = torch.where(probs == 0, 0.0, probs * -F.logsigmoid(logits))
    absent = torch.where(probs == 1, 0.0, (1 - probs) * -F.logsigmoid(-logits))
    return there + absent


def _binary_slope(logits: Tensor, probs: Tensor) -> Tensor:
    exponentials = (-logits.abs()).exp()
    smaller = exponentials / (1 + exponentials)  # of the sigmoid and what it lacks to 1
    return torch.where(logits > 0, (1 - probs) - smaller, smaller - probs)


def _divergence(student: Tensor, student_tau: float, teacher: Tensor, teacher_tau: float) -> Tensor:
    log_probs = _log_softmax(teacher, teacher_tau)
    probs = log_probs.exp()
    return torch.where(probs == 0, 0.0, probs * (log_probs - _log_softmax(student, student_tau))).sum(1)


def _log_softmax(logits: Tensor, tau: float) -> Tensor:
    # The maximum goes first: at logits of 1e4 dividing first loses 2e-4 of every probability.
    return ((logits - logits.detach().amax(1, keepdim=True)) / tau).log_softmax(1)


def _save_softmax(statistics: Tensor, column: int, logits: Tensor, tau: float) -> None:
    maximum = logits.amax(1)
    exponentials = ((logits - maximum[:, None]) / tau).exp()
    ones = exponentials == 1
    statistics[:, column] = maximum
    statistics[:, column + 1] = exponentials.masked_fill(ones, 0.0).sum(1) + (ones.sum(1) - 1)


def _saved_softmax(statistics: Tensor, column: int, logits: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Probabilities, and what each lacks to 1 where it is over 1/2; the others get 1 there."""
    exponentials = ((logits - statistics[:, column, None]) / tau).exp()
    rest = statistics[:, column + 1, None]
    return exponentials / (1 + rest), torch.where((exponentials == 1) & (rest < 1), rest / (1 + rest), 1.0)
