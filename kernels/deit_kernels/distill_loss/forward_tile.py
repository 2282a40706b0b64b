"""What the forward kernel of the loss does with one tile of a row: what is carried on from tile to tile."""

import triton
import triton.language as tl

from .tiles import FAR, INFINITY, LOG2_E, NO_CLASS, above, exp, load, soft_teacher, target_of


@triton.jit
def forward_tile(
    rows, topk, rest, labels, b_offset, b_mask, before, covered, classes, inverse_tau, label_smoothing,
    target_threshold, cls_state, student_state, teacher_state,
    BASE: tl.constexpr, TARGET: tl.constexpr, DISTILL: tl.constexpr, ONE_HEAD: tl.constexpr,
    SMOOTH_TARGET: tl.constexpr, SMOOTH_TEACHER: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Read one tile and carry on (max, ones, others, dot, mass) of both heads, and the same of the teacher.

    `ones` counts the classes whose exponential relative to the maximum is 1, `others` is the sum of all other ones: a
    sum beside 1 would lose the digits of a small one. `dot` sums the logits relative to the maximum times the target,
    and `mass` the target; where the target is the same for all classes, it is left out of both, and `covered` is how
    many the tiles so far have read. A hard teacher's (max, arg-max) are its first two, arg-max −1 where it has a NaN.
    A binary cross-entropy's `dot` is its sum, and nothing else is carried. The FIRST tile has nothing to carry on.
    """
    cls_row, student_row, teacher_row, dense_row = rows
    b_class = b_offset + before  # [BLOCK]
    if BASE != "none":
        b_cls = load(cls_row, b_offset, b_mask, -INFINITY)  # [BLOCK]
    if BASE == "softmax":
        if TARGET == "dense":
            b_target = load(dense_row, b_offset, b_mask, 0.0)  # [BLOCK]
            if SMOOTH_TARGET:
                b_target = (1 - label_smoothing) * b_target + tl.where(b_mask, label_smoothing * (1.0 / classes), 0.0)
            cls_state = _dense_tile(b_cls, b_target, b_mask, cls_state, SMOOTH_TARGET, FIRST)
        else:
            cls_state = _label_tile(b_cls, b_mask, covered, cls_state, SMOOTH_TARGET, FIRST)
    elif BASE != "none":
        b_target = target_of(dense_row, labels, b_offset, b_mask, b_class, classes, label_smoothing, TARGET)  # [BLOCK]
        cls_state = _binary_tile(b_cls, above(b_target, target_threshold), b_mask, cls_state)
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
def _binary_tile(b_x, b_target, b_mask, state):
    """Add up log(1 + e^−|x|) + |x| · (1 − t where x > 0, else t): nothing cancels."""
    maximum, ones, others, dot, mass = state
    b_size = tl.abs(b_x)
    b_lack = tl.where(b_x > 0, 1 - b_target, b_target)  # [BLOCK]
    b_cost = _log_1_plus(exp(-b_size)) + tl.where(b_lack == 0, 0.0, b_lack * b_size)  # [BLOCK]
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
    old, ones, others, dot, mass = state
    maximum = tl.maximum(old, tl.max(b_x, 0))
    b_x -= maximum
    shift = tl.maximum(old - maximum, FAR)
    ones, others = _carried(exp(b_x), exp(shift), ones, others, FIRST)
    if SMOOTH:
        if not FIRST:
            dot += covered * shift
        dot += tl.sum(tl.where(b_mask, b_x, 0.0), 0)
    return maximum, ones, others, dot, mass


@triton.jit
def _dense_tile(b_x, b_target, b_mask, state, SMOOTH: tl.constexpr, FIRST: tl.constexpr):
    """Carry on the exponentials and, of a target t, Σ t·(x − max) and Σ t."""
    old, ones, others, dot, mass = state
    maximum = tl.maximum(old, tl.max(b_x, 0))
    b_x -= maximum
    shift = tl.maximum(old - maximum, FAR)
    ones, others = _carried(exp(b_x), exp(shift), ones, others, FIRST)
    if not FIRST:
        dot += mass * shift
    mass += tl.sum(b_target, 0)
    # A class of probability 0, which smoothing leaves none of, takes nothing from a logit of −inf.
    b_counts = b_mask if SMOOTH else b_target != 0  # [BLOCK]
    dot += tl.sum(tl.where(b_counts, b_target * b_x, 0.0), 0)
    return maximum, ones, others, dot, mass


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
