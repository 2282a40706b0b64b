"""One tile of a row: where it lies, what both kernels read in it, and what forward and backward do with it.

Loads of 128 bits need offsets that the compiler sees to be multiples of 8 elements. C = 1000 is one, but Triton marks
an integer argument only when it is a multiple of 16, and falls back to 2-byte loads. So strides and class counts are
passed in units of STEP elements and multiplied in the kernel. For an odd C, rows start at odd addresses: EDGE lets the
tiles start at the first aligned class, and one more tile of 16 takes the up to 7 classes before and up to 7 after.

Compile-time arguments: BASE is "none", "softmax" or, for a binary cross-entropy, "mean" or "sum" over the classes;
TARGET "none", "labels", "mixed" or "dense"; DISTILL "none", "labels", "logits", "soft" or "topk"; ONE_HEAD says that
both terms are on the same logits; SMOOTH_TARGET and SMOOTH_TEACHER that labels are smoothed; `target_threshold` and
`weight_ptr`, the weights of the classes, are None where there are none.
"""

import math

import triton
import triton.language as tl

# A finite start for running maxima: −inf − (−inf) would be NaN in a row whose first tile is all −inf.
LOWEST = tl.constexpr(-3.0e38)
INFINITY = tl.constexpr(float("inf"))
LOG2_E = tl.constexpr(1 / math.log(2))
LN_2 = tl.constexpr(math.log(2))
# Lower bound of (old maximum − new maximum): −inf times a sum of 0 would be NaN.
FAR = tl.constexpr(-1.0e37)
NO_CLASS = tl.constexpr(2**30)  # above every class


@triton.jit
def aligned_part(row, stride, classes, EDGE: tl.constexpr):
    """(classes before the first aligned one, how many the tiles cover); the tensors of an EDGE call agree on them."""
    if EDGE:
        before = (8 - ((row * stride) & 7)) & 7  # an overflow leaves the last bits
        return before, tl.maximum(classes - before, 0) // 8 * 8
    else:
        return 0, classes


@triton.jit
def row_address(pointer, row, stride, before, STEP: tl.constexpr, EDGE: tl.constexpr):
    """The address of class `before` of a row, so written that the compiler sees its alignment."""
    if pointer is None:
        return 0  # never used; a tuple cannot hold None
    elif EDGE:
        return pointer + (_product(row, stride) + before) // 8 * 8
    else:
        return pointer + _product(row, stride) * STEP


@triton.jit
def _product(row, stride):
    """64 bits wide: of unsigned numbers of 32 bits that is one instruction, of others five."""
    if stride.dtype == tl.int32:
        return (row.to(tl.uint32).to(tl.uint64) * stride.to(tl.uint32).to(tl.uint64)).to(tl.int64)
    else:
        return row.to(tl.int64) * stride


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
    """(logarithm of the probability of each class outside the TopK, whether it lists a class that does not exist)."""
    indices_ptr, probs_ptr, row, listed = topk
    b_k = tl.arange(0, TOPK_BLOCK)  # [TOPK_BLOCK]
    first = row.to(tl.int64) * listed
    mass = tl.sum(load(probs_ptr + first, b_k, b_k < listed, 0.0), 0)
    b_index = tl.load(indices_ptr + first + b_k, mask=b_k < listed, other=0)  # [TOPK_BLOCK]
    outside = tl.max(((b_index < 0) | (b_index >= classes)).to(tl.int32), 0) != 0
    return tl.log(tl.maximum(1.0 - mass, 0.0) / tl.maximum(classes - listed, 1).to(tl.float32)), outside


@triton.jit
def weighted(base, distill, alpha):
    """The loss; a term of weight 0 contributes nothing even when it is infinite."""
    both = (1 - alpha) * base + alpha * distill
    return tl.where(alpha == 0, base, tl.where(alpha == 1, distill, both))


@triton.jit
def times(x, weight):
    """A weight of 0 takes nothing from an infinite term."""
    return tl.where(weight == 0, 0.0, weight * x)


@triton.jit
def dense_weight(dense_row, weight_ptr, classes, BLOCK: tl.constexpr):
    """Σ w t of a row of probabilities."""
    b_sum = tl.zeros([BLOCK], tl.float32)  # [BLOCK]
    for first in range(0, classes, BLOCK):
        b_class = first + tl.arange(0, BLOCK)  # [BLOCK]
        b_weight = load(weight_ptr, b_class, b_class < classes, 0.0)  # [BLOCK]
        b_sum += times(load(dense_row, b_class, b_class < classes, 0.0), b_weight)
    return tl.sum(b_sum, 0)


@triton.jit
def load(pointer, b_offset, b_mask, other):
    return tl.load(pointer + b_offset, mask=b_mask, other=other).to(tl.float32)


@triton.jit
def exp(b_x):
    """eˣ by the hardware's 2ˣ, whose results below 1e-38 are 0; tl.exp spends three more instructions on those."""
    return tl.exp2(b_x * LOG2_E)


@triton.jit
def soft_teacher(teacher_row, topk, rest, b_offset, b_mask, b_class, DISTILL: tl.constexpr):
    """The teacher's logits, or the logarithm of the probabilities that a TopK stands for: K comparisons a class."""
    if DISTILL == "soft":
        return load(teacher_row, b_offset, b_mask, -INFINITY)
    else:
        indices_ptr, probs_ptr, row, listed = topk
        first = row.to(tl.int64) * listed
        b_log = tl.full(b_class.shape, rest, tl.float32)  # [BLOCK]
        for k in range(0, listed):
            log = tl.log(tl.load(probs_ptr + first + k).to(tl.float32))
            b_log = tl.where(b_class == tl.load(indices_ptr + first + k), log, b_log)
        return tl.where(b_mask, b_log, -INFINITY)


@triton.jit
def target_of(dense_row, labels, b_offset, b_mask, b_class, classes, label_smoothing, TARGET: tl.constexpr):
    """The base term's target, smoothed."""
    label, partner, lam = labels
    even = label_smoothing / classes
    if TARGET == "dense":
        return (1 - label_smoothing) * load(dense_row, b_offset, b_mask, 0.0) + even
    else:
        b_target = tl.where(b_class == label, (1 - label_smoothing) * lam + even, even)  # [BLOCK]
        if TARGET == "mixed":
            b_target = tl.where(b_class == partner, b_target + (1 - label_smoothing) * (1 - lam), b_target)
        return b_target


@triton.jit
def above(b_target, target_threshold):
    if target_threshold is None:
        return b_target
    else:
        return tl.where(b_target > target_threshold, 1.0, 0.0)


@triton.jit
def forward_tile(
    rows, topk, rest, labels, b_offset, b_mask, before, covered, classes, inverse_tau, label_smoothing,
    target_threshold, weight_ptr, cls_state, student_state, teacher_state,
    BASE: tl.constexpr, TARGET: tl.constexpr, DISTILL: tl.constexpr, ONE_HEAD: tl.constexpr,
    SMOOTH_TARGET: tl.constexpr, SMOOTH_TEACHER: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Read one tile and carry on (max, ones, others, dot, mass) of both heads, and the same of the teacher.

    `ones` counts the classes whose exponential relative to the maximum is 1, `others` is the sum of all other ones: a
    sum beside 1 would lose the digits of a small one. `dot` sums the logits relative to the maximum times the target,
    and `mass` the target; a target that is the same for all classes is left out of both. `covered` counts the
    classes read so far. A hard teacher's (max, arg-max) are its first two, arg-max −1 where it has a NaN.
    A binary cross-entropy's `dot` is its sum, and nothing else is carried. The FIRST tile has nothing to carry on.
    """
    cls_row, student_row, teacher_row, dense_row = rows
    b_class = b_offset + before  # [BLOCK]
    if BASE != "none":
        b_cls = load(cls_row, b_offset, b_mask, -INFINITY)  # [BLOCK]
        b_weight = None
        if weight_ptr is not None:
            b_weight = load(weight_ptr, b_class, b_mask, 0.0)  # [BLOCK]
    if BASE == "softmax":
        if TARGET == "dense":
            b_target = load(dense_row, b_offset, b_mask, 0.0)  # [BLOCK]
            if SMOOTH_TARGET:
                b_target = (1 - label_smoothing) * b_target + tl.where(b_mask, label_smoothing * (1.0 / classes), 0.0)
            if weight_ptr is None:
                cls_state = _dense_tile(b_cls, b_target, b_mask, cls_state, SMOOTH_TARGET, FIRST)
            else:
                cls_state = _dense_tile(b_cls, times(b_target, b_weight), b_mask, cls_state, False, FIRST)
        elif SMOOTH_TARGET and weight_ptr is not None:
            cls_state = _dense_tile(b_cls, b_weight, b_mask, cls_state, False, FIRST)
        else:
            cls_state = _label_tile(b_cls, b_mask, covered, cls_state, SMOOTH_TARGET, FIRST)
    elif BASE != "none":
        b_target = target_of(dense_row, labels, b_offset, b_mask, b_class, classes, label_smoothing, TARGET)  # [BLOCK]
        cls_state = _binary_tile(b_cls, above(b_target, target_threshold), b_mask, b_weight, cls_state)
    if DISTILL != "none":
        b_student = b_cls if ONE_HEAD else load(student_row, b_offset, b_mask, -INFINITY)  # [BLOCK]
    if DISTILL == "soft" or DISTILL == "topk":
        b_teacher = soft_teacher(teacher_row, topk, rest, b_offset, b_mask, b_class, DISTILL)  # [BLOCK]
        student_state, teacher_state = _divergence_tile(
            b_student, b_teacher, inverse_tau * LOG2_E, inverse_tau * LOG2_E if DISTILL == "soft" else LOG2_E,
            student_state, teacher_state, FIRST,
        )  # fmt: skip
    elif DISTILL != "none":
        student_state = _label_tile(b_student, b_mask, covered, student_state, SMOOTH_TEACHER, FIRST)
        if DISTILL == "logits":
            b_teacher = load(teacher_row, b_offset, b_mask, -INFINITY)  # [BLOCK]
            teacher_state = _arg_max_tile(b_teacher, b_class, teacher_state, FIRST)
    return cls_state, student_state, teacher_state


@triton.jit
def rest_of(state):
    """The sum of the exponentials of all classes but the largest, relative to it."""
    _, ones, others, _, _ = state
    return others + (ones - 1)


@triton.jit
def log_1p(x):
    """log(1 + x), near 0 by the series of 2 artanh(x / (2 + x))."""
    s = x * (1 / (2 + x))
    square = s * s
    series = 2 * s * (1 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7))))
    return tl.where(tl.abs(x) < 0.25, series, tl.log(1 + x))


@triton.jit
def label_loss(row_ptr, label, exists, state):
    """−log softmax at a label; a label outside the classes forms no address."""
    return (state[0] - tl.load(row_ptr + label, mask=exists, other=0.0).to(tl.float32)) + log_1p(rest_of(state))


@triton.jit
def _binary_tile(b_x, b_target, b_mask, b_weight, state):
    """Add up log(1 + e^−|x|) + |x| · (1 − t where x > 0, else t), times the weight: nothing cancels."""
    maximum, ones, others, dot, mass = state
    b_size = tl.abs(b_x)
    b_lack = tl.where(b_x > 0, 1 - b_target, b_target)  # [BLOCK]
    b_cost = _log_1_plus(exp(-b_size)) + tl.where(b_lack == 0, 0.0, b_lack * b_size)  # [BLOCK]
    if b_weight is not None:
        b_cost = times(b_cost, b_weight)
    return maximum, ones, others, dot + tl.sum(tl.where(b_mask, b_cost, 0.0), 0), mass


@triton.jit
def _log_1_plus(b_e):
    """log(1 + e) for e in [0, 1], by a polynomial whose relative error is 3e-8: no division."""
    b_series = 0.078225942 + b_e * (-0.029505232 + b_e * 0.0052326927)
    b_series = -0.24842982 + b_e * (0.19106006 + b_e * (-0.13663245 + b_e * b_series))
    return b_e * (1 + b_e * (-0.49999493 + b_e * (0.33319097 + b_e * b_series)))


@triton.jit
def _label_tile(b_x, b_mask, covered, state, SMOOTH: tl.constexpr, FIRST: tl.constexpr):
    """Carry on the exponentials and, for a target that is the same for all classes, Σ (x − max)."""
    b_x, shift, maximum, ones, others = _exponentials(b_x, state, FIRST)
    _, _, _, dot, mass = state
    if SMOOTH:
        if not FIRST:
            dot += covered * shift
        dot += tl.sum(tl.where(b_mask, b_x, 0.0), 0)
    return maximum, ones, others, dot, mass


@triton.jit
def _dense_tile(b_x, b_target, b_mask, state, SMOOTH: tl.constexpr, FIRST: tl.constexpr):
    """Carry on the exponentials and, of a target t, Σ t·(x − max) and Σ t."""
    b_x, shift, maximum, ones, others = _exponentials(b_x, state, FIRST)
    _, _, _, dot, mass = state
    if not FIRST:
        dot += mass * shift
    # A class of probability 0, which smoothing leaves none of, takes nothing from a logit of −inf.
    b_counts = b_mask if SMOOTH else b_target != 0  # [BLOCK]
    dot += tl.sum(tl.where(b_counts, b_target * b_x, 0.0), 0)
    return maximum, ones, others, dot, mass + tl.sum(b_target, 0)


@triton.jit
def _exponentials(b_x, state, FIRST: tl.constexpr):
    """(logits relative to the maximum, the old maximum relative to it, the maximum, ones, others) with a tile's."""
    old, ones, others, _, _ = state
    maximum = tl.maximum(old, tl.max(b_x, 0))
    b_x -= maximum
    shift = tl.maximum(old - maximum, FAR)
    ones, others = _carried(exp(b_x), exp(shift), ones, others, FIRST)
    return b_x, shift, maximum, ones, others


@triton.jit
def _carried(b_e, kept, ones, others, FIRST: tl.constexpr):
    """(ones, others) with a tile's exponentials; `kept` is what an exponential of 1 before it has become."""
    b_one = b_e == 1  # [BLOCK]
    tile_ones, tile_others = tl.sum(b_one.to(tl.int32), 0), tl.sum(tl.where(b_one, 0.0, b_e), 0)
    if FIRST:
        return tile_ones, tile_others
    else:
        others = tl.where(kept == 1, others, (ones + others) * kept) + tile_others
        return tl.where(kept == 1, ones, 0) + tile_ones, others


@triton.jit
def _divergence_tile(b_s, b_t, scale, teacher_scale, student_state, teacher_state, FIRST: tl.constexpr):
    """Carry on both rows' exponentials and Σ 2ᵗ·(t − s), each logit relative to its row's maximum and times its scale.

    The maximum is subtracted before the scale: at logits of 1e4 the other order loses 2e-4 of every probability.
    """
    s_old, s_ones, s_others, dot, mass = student_state
    t_old, t_ones, t_others, _, _ = teacher_state
    s_max, t_max = tl.maximum(s_old, tl.max(b_s, 0)), tl.maximum(t_old, tl.max(b_t, 0))
    b_s, b_t = (b_s - s_max) * scale, (b_t - t_max) * teacher_scale  # [BLOCK]
    s_shift, t_shift = tl.maximum((s_old - s_max) * scale, FAR), tl.maximum((t_old - t_max) * teacher_scale, FAR)
    s_kept, t_kept = tl.exp2(s_shift), tl.exp2(t_shift)
    b_weight = tl.exp2(b_t)  # [BLOCK]
    if not FIRST:
        # Classes whose weight has underflowed are gone, even where the student's −inf made the dot product infinite.
        dot = tl.where(t_kept == 0, 0.0, (dot + (t_ones + t_others) * (t_shift - s_shift)) * t_kept)
    dot += tl.sum(tl.where(b_weight == 0, 0.0, b_weight * (b_t - b_s)), 0)
    t_ones, t_others = _carried(b_weight, t_kept, t_ones, t_others, FIRST)
    s_ones, s_others = _carried(tl.exp2(b_s), s_kept, s_ones, s_others, FIRST)
    return (s_max, s_ones, s_others, dot, mass), (t_max, t_ones, t_others, mass, mass)


@triton.jit
def _arg_max_tile(b_x, b_class, state, FIRST: tl.constexpr):
    """Carry on the largest logit and the lowest class that has it, −1 once a NaN came by (a maximum skips it)."""
    best, label, others, dot, mass = state
    peak = tl.max(b_x, 0)
    b_place = tl.where(b_x == peak, b_class, NO_CLASS)  # [BLOCK]
    place = tl.min(tl.where(b_x != b_x, -1, b_place), 0)
    if FIRST:
        label = place
    else:
        wins = (peak > best) | ((peak == best) & (place < label))
        label = tl.where((place < 0) | (label < 0), -1, tl.where(wins, place, label))
        peak = tl.maximum(peak, best)
    return peak, label, others, dot, mass


@triton.jit
def backward_tile(
    rows, gradient_rows, labels, topk, rest, statistics, scales, b_offset, b_mask, before, classes,
    inverse_tau, label_smoothing, teacher_smoothing, target_threshold, weight_ptr,
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
        if weight_ptr is not None:
            b_weight = load(weight_ptr, b_class, b_mask, 0.0)  # [BLOCK]
        if BASE == "softmax":
            if weight_ptr is not None:
                b_target = times(b_target, b_weight)
            by, beside = _probability(cls_rest, target_sum)
            b_e = exp(b_cls - cls_max)  # [BLOCK]
            b_slope = (b_e * by - b_target) + b_e * beside  # [BLOCK]
        else:
            b_slope = _binary_slope(b_cls, above(b_target, target_threshold))  # [BLOCK]
            if weight_ptr is not None:
                b_slope = times(b_slope, b_weight)
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
