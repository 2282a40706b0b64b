"""The Triton kernels of the loss: forward, a program a row; its mean; backward, a program a row and chunk of classes.

Forward walks a row in tiles of BLOCK classes and carries maxima, sums of exponentials and dot products along, rescaled
when a maximum grows; up to 4096 classes ONE_TILE holds it. Everything is computed in float32. `tiles.py` holds the
arithmetic of one tile, and says what the compile-time arguments mean.
"""

import triton
import triton.language as tl

from . import reference
from .tiles import (
    LN_2,
    LOWEST,
    aligned_part,
    backward_tile,
    dense_weight,
    edge_tile,
    forward_tile,
    label_loss,
    log_1p,
    read_label,
    rest_of,
    row_address,
    times,
    topk_rest,
    weighted,
)

CLS_MAX = tl.constexpr(reference.CLS_MAX)
CLS_REST = tl.constexpr(reference.CLS_REST)
DIST_MAX = tl.constexpr(reference.DIST_MAX)
DIST_REST = tl.constexpr(reference.DIST_REST)
TEACHER_MAX = tl.constexpr(reference.TEACHER_MAX)  # also the TEACHER_LABEL
TEACHER_REST = tl.constexpr(reference.TEACHER_REST)
TARGET_SUM = tl.constexpr(reference.TARGET_SUM)
ROW_WEIGHT = tl.constexpr(reference.ROW_WEIGHT)
TARGET_WEIGHT = tl.constexpr(reference.TARGET_WEIGHT)

# Nothing is specialised on the value of a number, nor on the address of what is read one scalar at a time: a label view
# at an odd offset runs the code of any other, and a new batch size or temperature compiles nothing.
UNSPECIALISED = [
    "labels_ptr", "partner_ptr", "lam_ptr", "teacher_labels_ptr", "teacher_probs_ptr", "grad_ptr",
    "cls_stride", "student_stride", "teacher_stride", "dense_stride", "grad_stride", "class_units", "listed", "rows",
    "alpha", "inverse_tau", "kl_scale", "label_smoothing", "teacher_smoothing", "target_threshold", "ignore_index",
]  # fmt: skip


@triton.jit
def _even_term(rest, dot, mass, classes, smoothing, SMOOTH: tl.constexpr):
    """(cross-entropy with the part of the target that all classes share, its sum) of a row of smoothed labels."""
    if SMOOTH:
        return smoothing * (log_1p(rest) - dot * (1.0 / classes)), mass + smoothing
    else:
        return mass, mass


@triton.jit
def _base_term(
    cls_row, before, classes, labels, shares, label_smoothing, state, weight_ptr,
    BASE: tl.constexpr, TARGET: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """(base term, maximum, rest, sum of the target) of a row whose tiles have been read.

    With weights of classes w the sum is of w t, and `shares` are what both labels have of it.
    """
    maximum, _, _, dot, mass = state
    if BASE == "none":
        return mass, maximum, mass, mass  # zeros, but for the maximum
    elif BASE == "sum":
        return dot, mass, mass, mass
    elif BASE == "mean":
        return dot / classes, mass, mass, mass
    else:
        rest = rest_of(state)
        if TARGET == "dense":
            base = mass * log_1p(rest) - dot
        elif weight_ptr is not None:
            base = mass
            if SMOOTH:
                even = label_smoothing / classes
                base, mass = even * (mass * log_1p(rest) - dot), even * mass
            label, exists, partner, partner_exists, _ = labels
            first, second = shares
            keep = 1 - label_smoothing
            base += keep * times(label_loss(cls_row - before, label, exists, state), first)
            if TARGET == "mixed":
                base += keep * times(label_loss(cls_row - before, partner, partner_exists, state), second)
            mass += keep * (first + second)
        else:
            base, mass = _even_term(rest, dot, mass, classes, label_smoothing, SMOOTH)
            label, exists, partner, partner_exists, lam = labels
            from_labels = label_loss(cls_row - before, label, exists, state)
            if TARGET == "mixed":  # a weight of 0 takes nothing from a logit of −inf
                from_partner = label_loss(cls_row - before, partner, partner_exists, state)
                from_labels = tl.where(lam == 0, 0.0, lam * from_labels)
                from_labels += tl.where(lam == 1, 0.0, (1 - lam) * from_partner)
            base += (1 - label_smoothing) * from_labels
            mass += 1 - label_smoothing
        return base, maximum, rest, mass


@triton.jit
def _distill_term(
    student_row, before, classes, teacher_label, known, kl_scale, teacher_smoothing, student_state, teacher_state,
    DISTILL: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """(distillation term, maximum and rest of the student, of the teacher: hard, its label and 0)."""
    student_max, _, _, dot, mass = student_state
    teacher_max, arg_max, _, _, _ = teacher_state
    if DISTILL == "none":
        return mass, student_max, mass, teacher_max, mass  # zeros, but for the maxima
    else:
        rest = rest_of(student_state)
        if DISTILL == "soft" or DISTILL == "topk":
            teacher_rest = rest_of(teacher_state)
            inverse = 1 / (1 + teacher_rest)
            divergence = dot * LN_2 * inverse + log_1p((rest - teacher_rest) * inverse)
            return divergence * kl_scale, student_max, rest, teacher_max, teacher_rest
        else:
            if DISTILL == "logits":
                teacher_label, known = arg_max, arg_max >= 0
            from_label = label_loss(student_row - before, teacher_label, known, student_state)
            distill, _ = _even_term(rest, dot, mass, classes, teacher_smoothing, SMOOTH)
            distill += (1 - teacher_smoothing) * from_label
            return distill, student_max, rest, teacher_label.to(tl.float32), mass


@triton.jit(do_not_specialize=UNSPECIALISED)
def forward_kernel(
    cls_ptr, student_ptr, teacher_ptr, dense_ptr, labels_ptr, partner_ptr, lam_ptr,
    weight_ptr, teacher_labels_ptr, teacher_probs_ptr,
    loss_ptr, base_ptr, distill_ptr, statistics_ptr,
    cls_stride, student_stride, teacher_stride, dense_stride, class_units, listed,
    alpha, inverse_tau, kl_scale, label_smoothing, teacher_smoothing, target_threshold, ignore_index,
    BASE: tl.constexpr, TARGET: tl.constexpr, DISTILL: tl.constexpr, ONE_HEAD: tl.constexpr,
    SMOOTH_TARGET: tl.constexpr, SMOOTH_TEACHER: tl.constexpr, TOPK_BLOCK: tl.constexpr,
    STEP: tl.constexpr, EDGE: tl.constexpr, BLOCK: tl.constexpr, STATISTICS: tl.constexpr, ONE_TILE: tl.constexpr,
):  # fmt: skip
    """Both terms and the statistics of one row, and its loss unless loss_ptr is None.

    teacher_labels_ptr holds one label a row, or the K classes of a TopK.
    """
    row = tl.program_id(0)
    classes = class_units * STEP
    before, aligned = aligned_part(row, student_stride, classes, EDGE)
    cls_row = row_address(cls_ptr, row, cls_stride, before, STEP, EDGE)
    student_row = row_address(student_ptr, row, student_stride, before, STEP, EDGE)
    teacher_row = row_address(teacher_ptr, row, teacher_stride, before, STEP, EDGE)
    dense_row = row_address(dense_ptr, row, dense_stride, before, STEP, EDGE)
    rows = (cls_row, student_row, teacher_row, dense_row)

    ignored, bad, rest = row < 0, row < 0, 0.0
    labels, picked, teacher_label, known = (0, True, 0, True, 1.0), (0, 0, 1.0), 0, True
    topk = (teacher_labels_ptr, teacher_probs_ptr, row, listed)
    if TARGET == "labels" or TARGET == "mixed":
        label, exists, ignored, bad = read_label(labels_ptr, row, classes, ignore_index, ignored, bad)
        labels = (label, exists, label, exists, 1.0)
        picked = (label.to(tl.int32), 0, 1.0)
    if TARGET == "mixed":
        partner, partner_exists, ignored, bad = read_label(partner_ptr, row, classes, ignore_index, ignored, bad)
        lam = tl.load(lam_ptr + row).to(tl.float32)
        bad |= ~((lam >= 0) & (lam <= 1))
        labels = (label, exists, partner, partner_exists, lam)
        picked = (label.to(tl.int32), partner.to(tl.int32), lam)
    if DISTILL == "labels":
        teacher_label, known, ignored, bad = read_label(teacher_labels_ptr, row, classes, ignore_index, ignored, bad)
    if DISTILL == "topk":
        rest, outside = topk_rest(topk, classes, TOPK_BLOCK)
        bad |= outside

    zero = tl.zeros([], tl.float32)
    target_weight, shares = zero, (zero, zero)
    if weight_ptr is not None:
        if TARGET == "labels":
            target_weight += tl.load(weight_ptr + label, mask=exists, other=0.0).to(tl.float32)
            shares = (target_weight, zero)
        elif TARGET == "mixed":
            first = lam * tl.load(weight_ptr + label, mask=exists, other=0.0).to(tl.float32)
            second = (1 - lam) * tl.load(weight_ptr + partner, mask=partner_exists, other=0.0).to(tl.float32)
            target_weight += first + second
            shares = (first, second)
        else:
            target_weight = dense_weight(dense_row - before, weight_ptr, classes, BLOCK)
    cls_state = (zero + LOWEST, row * 0, zero, zero, zero)
    student_state = (zero + LOWEST, row * 0, zero, zero, zero)
    teacher_state = (zero + LOWEST, row * 0, zero, zero, zero)
    covered = 0
    if EDGE:
        b_edge, b_edge_mask = edge_tile(before, aligned, classes)  # [16]
        cls_state, student_state, teacher_state = forward_tile(
            rows, topk, rest, picked, b_edge, b_edge_mask, before, 0, classes, inverse_tau,
            label_smoothing, target_threshold, weight_ptr, cls_state, student_state, teacher_state,
            BASE, TARGET, DISTILL, ONE_HEAD, SMOOTH_TARGET, SMOOTH_TEACHER, True,
        )  # fmt: skip
        covered = classes - aligned
    for first in range(0, BLOCK if ONE_TILE else aligned, BLOCK):
        b_offset = first + tl.arange(0, BLOCK)  # [BLOCK]
        cls_state, student_state, teacher_state = forward_tile(
            rows, topk, rest, picked, b_offset, b_offset < aligned, before, covered + first, classes, inverse_tau,
            label_smoothing, target_threshold, weight_ptr, cls_state, student_state, teacher_state,
            BASE, TARGET, DISTILL, ONE_HEAD, SMOOTH_TARGET, SMOOTH_TEACHER, ONE_TILE,
        )  # fmt: skip

    base, cls_max, cls_rest, mass = _base_term(
        cls_row, before, classes, labels, shares, label_smoothing, cls_state, weight_ptr, BASE, TARGET, SMOOTH_TARGET
    )
    distill, student_max, student_rest, teacher_max, teacher_rest = _distill_term(
        student_row, before, classes, teacher_label, known, kl_scale, teacher_smoothing, student_state, teacher_state,
        DISTILL, SMOOTH_TEACHER,
    )  # fmt: skip
    if DISTILL == "logits":
        bad |= teacher_state[1] < 0
    if weight_ptr is not None:
        distill = times(distill, target_weight)

    weight = tl.where(ignored, 0.0, tl.where(bad, float("nan"), 1.0))
    base, distill = tl.where(ignored, 0.0, base * weight), tl.where(ignored, 0.0, distill * weight)
    tl.store(base_ptr + row, base)
    tl.store(distill_ptr + row, distill)
    if loss_ptr is not None:
        tl.store(loss_ptr + row, weighted(base, distill, alpha))
    statistics = statistics_ptr + row.to(tl.int64) * STATISTICS
    tl.store(statistics + CLS_MAX, cls_max)
    tl.store(statistics + CLS_REST, cls_rest)
    tl.store(statistics + DIST_MAX, student_max)
    tl.store(statistics + DIST_REST, student_rest)
    tl.store(statistics + TEACHER_MAX, teacher_max)
    tl.store(statistics + TEACHER_REST, teacher_rest)
    tl.store(statistics + TARGET_SUM, mass)
    tl.store(statistics + ROW_WEIGHT, weight)
    if weight_ptr is not None:
        tl.store(statistics + TARGET_WEIGHT, tl.where(ignored, 0.0, target_weight))


@triton.jit(do_not_specialize=UNSPECIALISED)
def mean_kernel(
    base_rows_ptr, distill_rows_ptr, statistics_ptr, counts_ptr, loss_ptr, base_ptr, distill_ptr, count_ptr,
    rows, alpha, STATISTICS: tl.constexpr, BY_WEIGHTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program adds up ROWS rows. With a loss_ptr there is one program, which divides its sums: the means.

    `statistics` say which rows count, or BY_WEIGHTS how much each adds to the divisor. A second launch gets the sums of
    the first as rows, with their `counts`. The order of the sums depends on the number of rows alone, so every run
    gives the same bits.
    """
    b_base = tl.zeros([BLOCK], tl.float32)  # [BLOCK]
    b_distill = tl.zeros([BLOCK], tl.float32)  # [BLOCK]
    b_count = tl.zeros([BLOCK], tl.float32)  # [BLOCK]
    begin = tl.program_id(0) * ROWS
    for first in range(begin, tl.minimum(begin + ROWS, rows), BLOCK):
        b_row = first + tl.arange(0, BLOCK)  # [BLOCK]
        b_mask = b_row < rows
        b_base += tl.load(base_rows_ptr + b_row, mask=b_mask, other=0.0)
        b_distill += tl.load(distill_rows_ptr + b_row, mask=b_mask, other=0.0)
        if counts_ptr is None:
            b_weight_ptr = statistics_ptr + b_row.to(tl.int64) * STATISTICS  # [BLOCK]
            if BY_WEIGHTS:
                b_count += tl.load(b_weight_ptr + TARGET_WEIGHT, mask=b_mask, other=0.0)
            else:
                b_count += (tl.load(b_weight_ptr + ROW_WEIGHT, mask=b_mask, other=0.0) != 0).to(tl.float32)
        else:
            b_count += tl.load(counts_ptr + b_row, mask=b_mask, other=0.0)
    base, distill, count = tl.sum(b_base, 0), tl.sum(b_distill, 0), tl.sum(b_count, 0)
    if loss_ptr is not None:
        base, distill = base / count, distill / count
        tl.store(loss_ptr, weighted(base, distill, alpha))
    tl.store(base_ptr + tl.program_id(0), base)
    tl.store(distill_ptr + tl.program_id(0), distill)
    tl.store(count_ptr + tl.program_id(0), count)


@triton.jit(do_not_specialize=UNSPECIALISED)
def backward_kernel(
    grad_ptr, count_ptr, statistics_ptr,
    cls_ptr, student_ptr, teacher_ptr, dense_ptr, labels_ptr, partner_ptr, lam_ptr,
    weight_ptr, teacher_labels_ptr, teacher_probs_ptr,
    cls_gradient_ptr, student_gradient_ptr,
    grad_stride, cls_stride, student_stride, teacher_stride, dense_stride, class_units, listed,
    alpha, inverse_tau, kl_scale, label_smoothing, teacher_smoothing, target_threshold,
    BASE: tl.constexpr, TARGET: tl.constexpr, DISTILL: tl.constexpr, ONE_HEAD: tl.constexpr, TOPK_BLOCK: tl.constexpr,
    STEP: tl.constexpr, EDGE: tl.constexpr, BLOCK: tl.constexpr, STATISTICS: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk of one row, recomputed from the statistics; count_ptr is None for one loss a row.

    The incoming gradient is read here, so a GradScaler's 65 536 multiplies float32, not a float16 that underflowed.
    """
    row = tl.program_id(0)
    classes = class_units * STEP
    before, aligned = aligned_part(row, student_stride, classes, EDGE)
    rows = (
        row_address(cls_ptr, row, cls_stride, before, STEP, EDGE),
        row_address(student_ptr, row, student_stride, before, STEP, EDGE),
        row_address(teacher_ptr, row, teacher_stride, before, STEP, EDGE),
        row_address(dense_ptr, row, dense_stride, before, STEP, EDGE),
    )
    gradient_rows = (
        row_address(cls_gradient_ptr, row, class_units, before, STEP, EDGE),
        row_address(student_gradient_ptr, row, class_units, before, STEP, EDGE),
    )
    saved = statistics_ptr + row.to(tl.int64) * STATISTICS
    statistics = (
        tl.load(saved + CLS_MAX),
        tl.load(saved + CLS_REST),
        tl.load(saved + DIST_MAX),
        tl.load(saved + DIST_REST),
        tl.load(saved + TEACHER_MAX),
        tl.load(saved + TEACHER_REST),
        tl.load(saved + TARGET_SUM),
    )
    weight = tl.load(saved + ROW_WEIGHT)
    scale = tl.load(grad_ptr + row.to(tl.int64) * grad_stride)
    if count_ptr is not None:
        scale = scale / tl.load(count_ptr)
    scale = tl.where(weight == 0, 0.0, scale * weight)
    base_scale, distill_scale = scale * (1 - alpha), scale * alpha
    if BASE == "mean":
        base_scale = base_scale / classes
    if DISTILL == "soft" or DISTILL == "topk":
        distill_scale = distill_scale * kl_scale * inverse_tau
    if weight_ptr is not None:
        distill_scale = times(distill_scale, tl.load(saved + TARGET_WEIGHT))
    scales = (base_scale, distill_scale)

    label, partner, lam, rest = 0, 0, 1.0, 0.0
    if TARGET == "labels" or TARGET == "mixed":
        label = tl.load(labels_ptr + row).to(tl.int32)
    if TARGET == "mixed":
        partner = tl.load(partner_ptr + row).to(tl.int32)
        lam = tl.load(lam_ptr + row).to(tl.float32)
    topk = (teacher_labels_ptr, teacher_probs_ptr, row, listed)
    if DISTILL == "topk":
        rest, _ = topk_rest(topk, classes, TOPK_BLOCK)

    b_offset = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    backward_tile(
        rows, gradient_rows, (label, partner, lam), topk, rest, statistics, scales, b_offset, b_offset < aligned,
        before, classes, inverse_tau, label_smoothing, teacher_smoothing, target_threshold, weight_ptr,
        BASE, TARGET, DISTILL, ONE_HEAD,
    )  # fmt: skip
    if EDGE:
        if tl.program_id(1) == 0:
            b_edge, b_edge_mask = edge_tile(before, aligned, classes)  # [16]
            backward_tile(
                rows, gradient_rows, (label, partner, lam), topk, rest, statistics, scales, b_edge, b_edge_mask,
                before, classes, inverse_tau, label_smoothing, teacher_smoothing, target_threshold, weight_ptr,
                BASE, TARGET, DISTILL, ONE_HEAD,
            )  # fmt: skip
