"""What the backward kernel of the loss does with one tile of a row: its gradient."""

import triton
import triton.language as tl

from .tiles import INFINITY, LOG2_E, above, exp, load, soft_teacher, target_of


@triton.jit
def backward_tile(
    rows, gradient_rows, labels, topk, rest, statistics, scales, b_offset, b_mask, before, classes,
    inverse_tau, label_smoothing, teacher_smoothing, target_threshold,
    BASE: tl.constexpr, TARGET: tl.constexpr, DISTILL: tl.constexpr, ONE_HEAD: tl.constexpr,
):  # fmt: skip
    """Store one tile of the gradients, each scaled: p Σt − t for a softmax p and a target t, p − t for a sigmoid.

    For a KL it is p − p_teacher. A difference of two numbers close to 1 keeps its digits: see `_probability`.
    """
    cls_row, student_row, teacher_row, dense_row = rows
    cls_gradient_row, student_gradient_row = gradient_rows
    cls_max, cls_rest, dist_max, dist_rest, teacher_max, teacher_rest, target_sum = statistics
    b_class = b_offset + before  # [BLOCK]
    if BASE != "none":
        b_cls = load(cls_row, b_offset, b_mask, -INFINITY)  # [BLOCK]
        b_target = target_of(dense_row, labels, b_offset, b_mask, b_class, classes, label_smoothing, TARGET)  # [BLOCK]
        if BASE == "softmax":
            by, beside = _probability(cls_rest, target_sum)
            b_e = exp(b_cls - cls_max)  # [BLOCK]
            b_slope = (b_e * by - b_target) + b_e * beside  # [BLOCK]
        else:
            b_slope = _binary_slope(b_cls, above(b_target, target_threshold))  # [BLOCK]
        b_gradient = _scaled(b_slope, scales[0])
        if not ONE_HEAD:
            tl.store(cls_gradient_row + b_offset, b_gradient, mask=b_mask)
    if DISTILL != "none":
        b_student = b_cls if ONE_HEAD else load(student_row, b_offset, b_mask, -INFINITY)  # [BLOCK]
        by, beside = _probability(dist_rest, 1.0)
        if DISTILL == "soft" or DISTILL == "topk":
            b_teacher = soft_teacher(teacher_row, topk, rest, b_offset, b_mask, b_class, DISTILL)  # [BLOCK]
            b_e = tl.exp2((b_student - dist_max) * (inverse_tau * LOG2_E))  # [BLOCK]
            teacher_scale = inverse_tau * LOG2_E if DISTILL == "soft" else LOG2_E
            b_f = tl.exp2((b_teacher - teacher_max) * teacher_scale)  # [BLOCK]
            teacher_by, teacher_beside = _probability(teacher_rest, 1.0)
            b_slope = (b_e * by - b_f * teacher_by) + (b_e * beside - b_f * teacher_beside)  # [BLOCK]
        else:  # teacher_max holds the TEACHER_LABEL
            even = teacher_smoothing / classes
            b_e = exp(b_student - dist_max)  # [BLOCK]
            b_target = tl.where(b_class == teacher_max.to(tl.int32), (1 - teacher_smoothing) + even, even)  # [BLOCK]
            b_slope = (b_e * by - b_target) + b_e * beside  # [BLOCK]
        b_distill = _scaled(b_slope, scales[1])
        if ONE_HEAD:
            b_distill += b_gradient
        tl.store(student_gradient_row + b_offset, b_distill, mask=b_mask)


@triton.jit
def _probability(rest, total):
    """(by, beside): the class of exponential e has probability e · (by + beside), times `total`.

    `beside` is what `by`, rounded, lacks to total / (1 + rest). So e · by − t, exact where both are close to 1, becomes
    the true difference when e · beside is added to it.
    """
    inverse = 1 / (1 + rest)
    by = total * inverse
    return by, ((total - by) - by * rest) * inverse


@triton.jit
def _binary_slope(b_x, b_target):
    b_e = exp(-tl.abs(b_x))
    b_smaller = b_e / (1 + b_e)  # of p and 1 − p
    return tl.where(b_x > 0, (1 - b_target) - b_smaller, b_smaller - b_target)


@triton.jit
def _scaled(b_x, scale):
    # An ignored row may hold NaN or infinite logits; its gradient is 0 all the same.
    return tl.where(scale == 0, 0.0, scale * b_x)
