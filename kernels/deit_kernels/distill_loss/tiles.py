"""Where a tile of a row lies, and what forward and backward read in it.

Loads of 128 bits need offsets that the compiler sees to be multiples of 8 elements. C = 1000 is one, but Triton marks
an integer argument only when it is a multiple of 16, and falls back to 2-byte loads. So strides and class counts are
passed in units of STEP elements and multiplied in the kernel. For an odd C, rows start at odd addresses: EDGE lets the
tiles start at the first aligned class, and one more tile of 16 takes the up to 7 classes before and up to 7 after.

Compile-time arguments: BASE is "none", "softmax" or, for a binary cross-entropy, "mean" or "sum" over the classes;
TARGET "none", "labels", "mixed" or "dense"; DISTILL "none", "labels", "logits", "soft" or "topk"; ONE_HEAD says that
both terms are on the same logits; SMOOTH_TARGET and SMOOTH_TEACHER that labels are smoothed; `target_threshold` is None
where there is none.
"""

import math

import triton
import triton.language as tl

# A finite start for running maxima: −inf − (−inf) would be NaN in a row whose first tile is all −inf.
LOWEST = tl.constexpr(-3.0e38)
INFINITY = tl.constexpr(float("inf"))
LOG2_E = tl.constexpr(1 / math.log(2))
LN_2 = tl.constexpr(math.log(2))
# The least of a maximum's growth, negated: times a sum that is 0, −inf would be NaN.
FAR = tl.constexpr(-1.0e37)
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
