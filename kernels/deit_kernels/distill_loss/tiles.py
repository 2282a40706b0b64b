"""What the kernels of the loss do with one tile of a row: where it lies, what is carried on, and its gradient.

Loads of 128 bits need offsets that the compiler sees to be multiples of 8 elements. C = 1000 is one, but Triton marks
an integer argument only when it is a multiple of 16, and falls back to 2-byte loads. So strides and class counts are
passed in units of STEP elements and multiplied in the kernel. For an odd C, rows start at odd addresses: EDGE lets the
tiles start at the first aligned class, and one more tile of 16 takes the up to 7 classes before and up to 7 after.

Compile-time arguments: BASE is "none", "softmax" or, for a binary cross-entropy, "mean" or "sum" over the classes;
TARGET "none", "labels", "mixed" or "dense"; DISTILL "none", "labels", "logits", "soft" or "topk"; ONE_HEAD says that
both terms are on the same logits; `target_threshold` is None where there is none.
"""

import triton
import triton.language as tl

# A finite start for running maxima: −inf − (−inf) would be NaN in a row whose first tile is all −inf.
LOWEST = tl.constexpr(-3.0e38)
INFINITY = tl.constexpr(float("inf"))
NO_CLASS = tl.constexpr(2**30)  # above every class


@triton.jit
def aligned_part(row, stride, classes, EDGE: tl.constexpr):
    """(classes before the first aligned one, how many the tiles cover); the tensors of an EDGE call agree on them."""
    if EDGE:
        before = ((8 - (row.to(tl.int64) * stride) % 8) % 8).to(tl.int32)
        return before, tl.maximum(classes - before, 0) // 8 * 8
    else:
        return 0, classes


@triton.jit
def row_address(pointer, row, stride, before, STEP: tl.constexpr, EDGE: tl.constexpr):
    """The address of class `before` of a row, so written that the compiler sees its alignment."""
    if pointer is None:
        return 0  # never used; a tuple cannot hold None
    elif EDGE:
        return pointer + (row.to(tl.int64) * stride + before) // 8 * 8
    else:
        return pointer + row.to(tl.int64) * stride * STEP


@triton.jit
def edge_tile(before, aligned, classes):
    """Offsets from class `before`, and mask, of the classes outside the aligned part."""
    b_i = tl.arange(0, 16)  # [16]
    b_offset = tl.where(b_i < 8, b_i - before, aligned + b_i - 8)  # [16]
    return b_offset, (b_offset + before < classes) & ((b_i >= 8) | (b_i < before))


@triton.jit
def read_label(labels_ptr, row, classes, ignore_index, ignored, bad):
    """(label, whether the class exists, whether any label so far ignores the row, whether any is out of range)."""
    label = tl.load(labels_ptr + row)
    exists = (label >= 0) & (label < classes)
    return label, exists, ignored | (label == ignore_index), bad | ~exists


@triton.jit
def topk_rest(topk, classes, TOPK_BLOCK: tl.constexpr):
    """(probability of each class outside the TopK, whether it lists a class that does not exist)."""
    indices_ptr, probs_ptr, row, listed = topk
    b_k = tl.arange(0, TOPK_BLOCK)  # [TOPK_BLOCK]
    first = row.to(tl.int64) * listed
    mass = tl.sum(_load(probs_ptr + first, b_k, b_k < listed, 0.0), 0)
    b_index = tl.load(indices_ptr + first + b_k, mask=b_k < listed, other=0)  # [TOPK_BLOCK]
    outside = tl.max(((b_index < 0) | (b_index >= classes)).to(tl.int32), 0) != 0
    return tl.maximum(1.0 - mass, 0.0) / tl.maximum(classes - listed, 1).to(tl.float32), outside


@triton.jit
def forward_tile(
    rows, labels, topk, rest, b_offset, b_mask, before, classes, inverse_tau, label_smoothing, teacher_smoothing,
    target_threshold, cls_state, student_state, teacher_state,
    BASE: tl.constexpr, TARGET: tl.constexpr, DISTILL: tl.constexpr, ONE_HEAD: tl.constexpr,
    SMOOTH_TARGET: tl.constexpr, SMOOTH_TEACHER: tl.constexpr,
):  # fmt: skip
    """Read one tile and carry on (max, ones, others, dot, mass) of both heads, and the same of the teacher.

    `ones` counts the classes whose exponential relative to the maximum is 1, `others` is the sum of all other ones: a
    sum beside 1 would lose the digits of a small one. A hard teacher's last two are its arg-max and whether it has NaN.
    A binary cross-entropy's `dot` is its sum, and nothing else is carried.
    """
    cls_row, student_row, teacher_row, dense_row = rows
    b_class = b_offset + before  # [BLOCK]
    b_even = tl.where(b_mask, 1.0 / classes, 0.0)  # [BLOCK]
    if BASE != "none":
        b_cls = _load(cls_row, b_offset, b_mask, -INFINITY)  # [BLOCK]
    if BASE == "softmax":
        b_target = label_smoothing * b_even  # [BLOCK]
        if TARGET == "dense":
            b_target += (1 - label_smoothing) * _load(dense_row, b_offset, b_mask, 0.0)
        cls_state = _cross_entropy_tile(b_cls, b_target, cls_state, SMOOTH_TARGET or TARGET == "dense")
    elif BASE != "none":
        b_target = _target(dense_row, labels, b_offset, b_mask, b_class, classes, label_smoothing, TARGET)  # [BLOCK]
        cls_state = _binary_tile(b_cls, _above(b_target, target_threshold), b_mask, cls_state)
    if DISTILL != "none":
        b_student = b_cls if ONE_HEAD else _load(student_row, b_offset, b_mask, -INFINITY)  # [BLOCK]
    if DISTILL == "soft" or DISTILL == "topk":
        b_teacher = _soft_teacher(teacher_row, topk, rest, b_offset, b_mask, b_class, DISTILL)  # [BLOCK]
        student_state, teacher_state = _divergence_tile(
            b_student, b_teacher, inverse_tau, inverse_tau if DISTILL == "soft" else 1.0, student_state, teacher_state
        )
    elif DISTILL != "none":
        student_state = _cross_entropy_tile(b_student, teacher_smoothing * b_even, student_state, SMOOTH_TEACHER)
        if DISTILL == "logits":
            b_teacher = _load(teacher_row, b_offset, b_mask, -INFINITY)  # [BLOCK]
            teacher_state = _arg_max_tile(b_teacher, b_class, b_mask, teacher_state)
    return cls_state, student_state, teacher_state


@triton.jit
def rest_of(state):
    """The sum of the exponentials of all classes but the largest, relative to it."""
    _, ones, others, _, _ = state
    return others + (ones - 1)


@triton.jit
def log_1p(x):
    """log(1 + x), near 0 by the series of 2 artanh(x / (2 + x))."""
    s = x / (2 + x)
    square = s * s
    series = 2 * s * (1 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7))))
    return tl.where(tl.abs(x) < 0.25, series, tl.log(1 + x))


@triton.jit
def label_loss(row_ptr, label, exists, state):
    """−log softmax at a label; a label outside the classes forms no address."""
    return (state[0] - tl.load(row_ptr + label, mask=exists, other=0.0).to(tl.float32)) + log_1p(rest_of(state))


@triton.jit
def weighted(base, distill, alpha):
    """The loss; a term of weight 0 contributes nothing even when it is infinite."""
    both = (1 - alpha) * base + alpha * distill
    return tl.where(alpha == 0, base, tl.where(alpha == 1, distill, both))


@triton.jit
def backward_tile(
    rows, gradient_rows, labels, topk, rest, statistics, scales, b_offset, b_mask, before, classes,
    inverse_tau, label_smoothing, teacher_smoothing, target_threshold,
    BASE: tl.constexpr, TARGET: tl.constexpr, DISTILL: tl.constexpr, ONE_HEAD: tl.constexpr,
):  # fmt: skip
    """Store one tile of the gradients, each scaled: p Σt − t for a softmax p and a target t, p − t for a sigmoid.

    For a KL it is p − p_teacher. Where p is over 1/2, the difference is that of what both sides lack to 1.
    """
    cls_row, student_row, teacher_row, dense_row = rows
    cls_gradient_row, student_gradient_row = gradient_rows
    cls_max, cls_rest, dist_max, dist_rest, teacher_max, teacher_rest, target_sum = statistics
    b_class = b_offset + before  # [BLOCK]
    if BASE != "none":
        b_cls = _load(cls_row, b_offset, b_mask, -INFINITY)  # [BLOCK]
        b_target = _target(dense_row, labels, b_offset, b_mask, b_class, classes, label_smoothing, TARGET)  # [BLOCK]
        if BASE == "softmax":
            b_slope = _slope(_exponential(b_cls, cls_max, 1.0), cls_rest, b_target, target_sum)  # [BLOCK]
        else:
            b_slope = _binary_slope(b_cls, _above(b_target, target_threshold))  # [BLOCK]
        b_gradient = _scaled(b_slope, scales[0])
        if not ONE_HEAD:
            tl.store(cls_gradient_row + b_offset, b_gradient, mask=b_mask)
    if DISTILL != "none":
        soft: tl.constexpr = DISTILL == "soft" or DISTILL == "topk"
        b_student = b_cls if ONE_HEAD else _load(student_row, b_offset, b_mask, -INFINITY)  # [BLOCK]
        b_e = _exponential(b_student, dist_max, inverse_tau if soft else 1.0)  # [BLOCK]
        if soft:
            b_teacher = _soft_teacher(teacher_row, topk, rest, b_offset, b_mask, b_class, DISTILL)  # [BLOCK]
            b_f = _exponential(b_teacher, teacher_max, inverse_tau if DISTILL == "soft" else 1.0)  # [BLOCK]
            by, teacher_by = 1 / (1 + dist_rest), 1 / (1 + teacher_rest)
            both_lack = teacher_rest * teacher_by - dist_rest * by
            both_dominant = tl.maximum(_dominant(dist_rest), _dominant(teacher_rest))
            b_over_half = tl.minimum(b_e, b_f) == both_dominant  # [BLOCK]
            b_distill = tl.where(b_over_half, both_lack, b_e * by - b_f * teacher_by)  # [BLOCK]
        else:  # teacher_max holds the TEACHER_LABEL
            b_target = tl.where(b_class == teacher_max.to(tl.int32), 1 - teacher_smoothing, 0.0)  # [BLOCK]
            b_distill = _slope(b_e, dist_rest, b_target + teacher_smoothing / classes, 1.0)  # [BLOCK]
        b_distill = _scaled(b_distill, scales[1])
        if ONE_HEAD:
            b_distill += b_gradient
        tl.store(student_gradient_row + b_offset, b_distill, mask=b_mask)


@triton.jit
def _load(pointer, b_offset, b_mask, other):
    return tl.load(pointer + b_offset, mask=b_mask, other=other).to(tl.float32)


@triton.jit
def _soft_teacher(teacher_row, topk, rest, b_offset, b_mask, b_class, DISTILL: tl.constexpr):
    """The teacher's logits, or the logarithms of the probabilities that a TopK stands for: K comparisons a class."""
    if DISTILL == "soft":
        return _load(teacher_row, b_offset, b_mask, -INFINITY)
    else:
        indices_ptr, probs_ptr, row, listed = topk
        first = row.to(tl.int64) * listed
        b_probs = tl.where(b_mask, rest, 0.0)  # [BLOCK]
        for k in range(0, listed):
            probability = tl.load(probs_ptr + first + k).to(tl.float32)
            b_probs = tl.where(b_class == tl.load(indices_ptr + first + k), probability, b_probs)
        b_positive = b_mask & (b_probs > 0)
        return tl.where(b_positive, tl.log(tl.where(b_positive, b_probs, 1.0)), -INFINITY)


@triton.jit
def _target(dense_row, labels, b_offset, b_mask, b_class, classes, label_smoothing, TARGET: tl.constexpr):
    """The base term's target, smoothed."""
    label, partner, lam = labels
    if TARGET == "dense":
        b_target = _load(dense_row, b_offset, b_mask, 0.0)  # [BLOCK]
    else:
        b_target = tl.where(b_class == label, lam, 0.0)  # [BLOCK]
    if TARGET == "mixed":
        b_target += tl.where(b_class == partner, 1 - lam, 0.0)
    return (1 - label_smoothing) * b_target + label_smoothing / classes


@triton.jit
def _above(b_target, target_threshold):
    if target_threshold is None:
        return b_target
    else:
        return tl.where(b_target > target_threshold, 1.0, 0.0)


@triton.jit
def _binary_tile(b_x, b_target, b_mask, state):
    """Add up log(1 + e^−|x|) + |x| · (1 − t where x > 0, else t): nothing cancels."""
    maximum, ones, others, dot, mass = state
    b_size = tl.abs(b_x)
    b_lack = tl.where(b_x > 0, 1 - b_target, b_target)  # [BLOCK]
    b_cost = _log_1_plus(tl.exp(-b_size)) + tl.where(b_lack == 0, 0.0, b_lack * b_size)  # [BLOCK]
    return maximum, ones, others, dot + tl.sum(tl.where(b_mask, b_cost, 0.0), 0), mass


@triton.jit
def _log_1_plus(b_e):
    """log(1 + e) for e in [0, 1] by 2 artanh(e / (2 + e)), whose series is a polynomial that errs by 1e-8."""
    b_s = b_e / (2 + b_e)
    b_u = b_s * b_s
    b_series = b_u * (0.33333209 + b_u * (0.20010763 + b_u * (0.14000903 + b_u * 0.14005993)))
    return 2 * (b_s + b_s * b_series)


@triton.jit
def _binary_slope(b_x, b_target):
    b_e = tl.exp(-tl.abs(b_x))
    b_smaller = b_e / (1 + b_e)  # of p and 1 − p
    return tl.where(b_x > 0, (1 - b_target) - b_smaller, b_smaller - b_target)


@triton.jit
def _cross_entropy_tile(b_x, b_target, state, HAS_TARGET: tl.constexpr):
    """Carry on the exponentials and, of the target t that is spread over classes, Σ t·(x − max) and Σ t."""
    old, ones, others, dot, mass = state
    maximum = tl.maximum(old, tl.max(b_x, 0))
    ones, others = _carried(tl.exp(b_x - maximum), tl.exp(old - maximum), ones, others)
    if HAS_TARGET:
        # A class of probability 0 takes nothing from a logit of −inf; before the first tile the mass is 0.
        b_term = tl.where(b_target == 0, 0.0, b_target * (b_x - maximum))  # [BLOCK]
        dot += tl.where(mass == 0, 0.0, mass * (old - maximum)) + tl.sum(b_term, 0)
        mass += tl.sum(b_target, 0)
    return maximum, ones, others, dot, mass


@triton.jit
def _carried(b_e, kept, ones, others):
    """(ones, others) with a tile's exponentials; `kept` is what an exponential of 1 before it has become."""
    b_one = b_e == 1  # [BLOCK]
    others = tl.where(kept == 1, others, (ones + others) * kept) + tl.sum(tl.where(b_one, 0.0, b_e), 0)
    return tl.where(kept == 1, ones, 0) + tl.sum(b_one.to(tl.int32), 0), others


@triton.jit
def _divergence_tile(b_s, b_t, inverse_tau, teacher_inverse_tau, student_state, teacher_state):
    """Carry on both rows' exponentials and Σ exp(t)·(t − s), each logit relative to its row's maximum and over τ.

    The maximum is subtracted before the division: at logits of 1e4 the other order loses 2e-4 of every probability.
    """
    s_old, s_ones, s_others, dot, mass = student_state
    t_old, t_ones, t_others, arg_max, has_nan = teacher_state
    s_max, t_max = tl.maximum(s_old, tl.max(b_s, 0)), tl.maximum(t_old, tl.max(b_t, 0))
    s_shift, t_shift = (s_old - s_max) * inverse_tau, (t_old - t_max) * teacher_inverse_tau
    b_s, b_t = (b_s - s_max) * inverse_tau, (b_t - t_max) * teacher_inverse_tau  # [BLOCK]
    b_weight = tl.exp(b_t)  # [BLOCK]
    b_term = tl.where(b_weight == 0, 0.0, b_weight * (b_t - b_s))  # [BLOCK]
    t_total = t_ones + t_others
    dot += tl.where(t_total == 0, 0.0, t_total * (t_shift - s_shift))
    # Classes whose weight has underflowed are gone, even those where the student's −inf made the dot product infinite.
    kept = tl.exp(t_shift)
    dot = tl.where(kept == 0, 0.0, dot * kept) + tl.sum(b_term, 0)
    t_ones, t_others = _carried(b_weight, kept, t_ones, t_others)
    s_ones, s_others = _carried(tl.exp(b_s), tl.exp(s_shift), s_ones, s_others)
    return (s_max, s_ones, s_others, dot, mass), (t_max, t_ones, t_others, arg_max, has_nan)


@triton.jit
def _arg_max_tile(b_x, b_class, b_mask, state):
    """Carry on the largest logit, the lowest class that has it, and whether a NaN came by (a maximum skips it)."""
    best, ones, others, label, has_nan = state
    peak = tl.max(b_x, 0)
    peak_class = tl.min(tl.where(b_mask & (b_x == peak), b_class, NO_CLASS), 0)
    wins = (peak > best) | ((peak == best) & (peak_class < label))
    has_nan |= tl.max((b_x != b_x).to(tl.int32), 0)
    return tl.where(wins, peak, best), ones, others, tl.where(wins, peak_class, label), has_nan


@triton.jit
def _exponential(b_x, maximum, inverse_tau):
    return tl.exp((b_x - maximum) * inverse_tau)


@triton.jit
def _slope(b_e, rest, b_target, total):
    """p · total − target, where `total` is the sum of the target."""
    by = total / (1 + rest)
    return tl.where(b_e == _dominant(rest), (total - b_target) - by * rest, b_e * by - b_target)


@triton.jit
def _dominant(rest):
    """What an exponential is compared with to see whether its class is the largest and has p over 1/2."""
    return tl.where(rest < 1, 1.0, 2.0)


@triton.jit
def _scaled(b_x, scale):
    # An ignored row may hold NaN or infinite logits; its gradient is 0 all the same.
    return tl.where(scale == 0, 0.0, scale * b_x)
