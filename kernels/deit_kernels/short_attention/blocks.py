"""What all attention kernels share: rows of one (batch, head), loaded and stored as blocks, and the exponential.

Notation of the kernels: N rows of D features a head, held as BD ≥ D; BM query rows, BN or P key rows a block;
`*_batch`, `*_row`, `*_head` are strides in units of 8 elements. Triton specialises integers on divisibility by 16 only,
so the stride 3·H·D = 648 of (H, D) = (3, 72) would turn 16-byte loads into 2-byte ones; the factor 8 inside the kernel
keeps them whole. `scale_log2` is scale · log2(e), since the hardware's exponential is 2**x; `lse` is the base-2
log-sum-exp of a row of scaled logits.

Rows past `length` are loaded as zeros and never stored.
"""

import triton
import triton.language as tl

# Nothing is gained by compiling again for H % 16 == 0, and a first call at a new shape would wait a second for it.
INTEGERS = [
    "heads", "length", "splits",
    "query_batch", "query_row", "query_head", "key_batch", "key_row", "key_head",
    "value_batch", "value_row", "value_head", "grad_batch", "grad_row", "grad_head",
]  # fmt: skip


@triton.jit
def head_start(base, pair, heads, batch_stride, head_stride):
    """Address of row 0 of (batch, head) number `pair`; 64-bit, since a batch of qkv passes 2**31 elements."""
    batch, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    return base + (batch * batch_stride + head * head_stride) * 8


@triton.jit
def load_rows(base, rows, row_stride, length, D: tl.constexpr, BD: tl.constexpr):
    features = tl.arange(0, BD)
    inside = rows[:, None] < length
    if BD != D:
        inside = inside & (features[None, :] < D)
    return tl.load(base + rows[:, None] * row_stride + features[None, :], mask=inside, other=0.0)


@triton.jit
def store_rows(base, rows, row_stride, block, length, D: tl.constexpr, BD: tl.constexpr):
    features = tl.arange(0, BD)
    inside = rows[:, None] < length
    if BD != D:
        inside = inside & (features[None, :] < D)
    tl.store(base + rows[:, None] * row_stride + features[None, :], block.to(base.dtype.element_ty), mask=inside)


@triton.jit
def make_products(q, k, keys, length, MASKED: tl.constexpr):
    products = tl.dot(q, tl.trans(k))  # [BM, P]
    if MASKED:
        products = tl.where(keys[None, :] < length, products, float("-inf"))
    return products


@triton.jit
def make_probabilities(products, scale_log2, shift):
    """2**(products · scale_log2 − shift), `shift` broadcast: one multiply-add and one exponential an element."""
    return tl.exp2(tl.fma(products, scale_log2, -shift))
