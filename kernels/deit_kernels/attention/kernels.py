"""The attention kernels: two forms of the forward, two of the backward, for the short sequences of vision transformers.

resident  one program per (batch, head): K and V are loaded once and stay in shared memory while the queries stream by.
          Every byte is read once and written once, and the softmax is exact, without rescaling.
tiled     one program per tile of rows, for sequences whose keys or gradients do not fit beside the arithmetic.

Notation: N rows of D features a head; BM query rows, BN or P key rows a block; `*_batch`, `*_row`, `*_head` are strides
in units of 8 elements. Triton specialises integers on divisibility by 16 only, so the stride 3·H·D = 648 of
(H, D) = (3, 72) would turn 16-byte loads into 2-byte ones; the factor 8 inside the kernel keeps them whole.
`scale_log2` is scale · log2(e), since the hardware's exponential is 2**x; `lse` is the base-2 log-sum-exp of a row of
scaled logits.

Rows past `length` are loaded as zeros and never stored. Nothing is accumulated in memory, so results repeat bit by bit.
"""

import triton
import triton.language as tl

# Nothing is gained by compiling again for H % 16 == 0, and a first call at a new shape would wait a second for it.
_INTEGERS = [
    "heads", "length", "splits",
    "query_batch", "query_row", "query_head", "key_batch", "key_row", "key_head",
    "value_batch", "value_row", "value_head", "grad_batch", "grad_row", "grad_head",
]  # fmt: skip

SUMMED = tl.constexpr(64)  # keys up to which the resident backward sums P ∘ dP instead of reading the output


@triton.jit
def _head_start(base, pair, heads, batch_stride, head_stride):
    """Address of row 0 of (batch, head) number `pair`; 64-bit, since a batch of qkv passes 2**31 elements."""
    batch, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    return base + (batch * batch_stride + head * head_stride) * 8


@triton.jit
def _load_rows(base, rows, row_stride, length, D: tl.constexpr, BD: tl.constexpr):
    features = tl.arange(0, BD)
    inside = rows[:, None] < length
    if BD != D:
        inside = inside & (features[None, :] < D)
    return tl.load(base + rows[:, None] * row_stride + features[None, :], mask=inside, other=0.0)


@triton.jit
def _store_rows(base, rows, row_stride, block, length, D: tl.constexpr, BD: tl.constexpr):
    features = tl.arange(0, BD)
    inside = rows[:, None] < length
    if BD != D:
        inside = inside & (features[None, :] < D)
    tl.store(base + rows[:, None] * row_stride + features[None, :], block.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _products(q, k, keys, length, MASKED: tl.constexpr):
    products = tl.dot(q, tl.trans(k))  # [BM, P]
    if MASKED:
        products = tl.where(keys[None, :] < length, products, float("-inf"))
    return products


@triton.jit
def _probabilities(products, scale_log2, shift):
    """2**(products · scale_log2 − shift), `shift` broadcast: one multiply-add and one exponential an element."""
    return tl.exp2(tl.fma(products, scale_log2, -shift))


@triton.jit(do_not_specialize=_INTEGERS)
def attention_forward_resident(
    query, key, value, out, lse, heads, length, splits, scale_log2,
    query_batch, query_row, query_head, key_batch, key_row, key_head, value_batch, value_row, value_head,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Exact softmax over all keys at once, held as pieces of P0 + P1 + P2 ≥ N rows: 128 + 64 + 16 for N = 198, not 256.

    `splits` programs share one (batch, head), each taking every splits-th block of queries, when B·H alone would leave
    multiprocessors idle. Only the last piece can pass `length`, so only it is masked.
    """
    program = tl.program_id(0)
    pair = program // splits
    query = _head_start(query, pair, heads, query_batch, query_head)
    key = _head_start(key, pair, heads, key_batch, key_head)
    value = _head_start(value, pair, heads, value_batch, value_head)
    out += ((pair // heads).to(tl.int64) * length * heads + pair % heads) * D
    lse += pair.to(tl.int64) * length

    keys0 = tl.arange(0, P0)
    k0 = _load_rows(key, keys0, key_row * 8, length, D, BD)  # [P0, D]
    v0 = _load_rows(value, keys0, value_row * 8, length, D, BD)
    if P1 > 0:
        keys1 = P0 + tl.arange(0, P1)
        k1 = _load_rows(key, keys1, key_row * 8, length, D, BD)
        v1 = _load_rows(value, keys1, value_row * 8, length, D, BD)
    if P2 > 0:
        keys2 = P0 + P1 + tl.arange(0, P2)
        k2 = _load_rows(key, keys2, key_row * 8, length, D, BD)
        v2 = _load_rows(value, keys2, value_row * 8, length, D, BD)

    for start in tl.range(program % splits * BM, length, splits * BM, num_stages=STAGES):
        rows = start + tl.arange(0, BM)
        q = _load_rows(query, rows, query_row * 8, length, D, BD)  # [BM, D]
        s0 = _products(q, k0, keys0, length, P1 == 0)  # [BM, P0]
        top = tl.max(s0, 1)  # [BM]
        if P1 > 0:
            s1 = _products(q, k1, keys1, length, P2 == 0)
            top = tl.maximum(top, tl.max(s1, 1))
        if P2 > 0:
            s2 = _products(q, k2, keys2, length, True)
            top = tl.maximum(top, tl.max(s2, 1))
        top *= scale_log2
        p0 = _probabilities(s0, scale_log2, top[:, None])
        total = tl.sum(p0, 1)  # [BM]
        o = tl.dot(p0.to(v0.dtype), v0)  # [BM, D]
        if P1 > 0:
            p1 = _probabilities(s1, scale_log2, top[:, None])
            total += tl.sum(p1, 1)
            o = tl.dot(p1.to(v1.dtype), v1, o)
        if P2 > 0:
            p2 = _probabilities(s2, scale_log2, top[:, None])
            total += tl.sum(p2, 1)
            o = tl.dot(p2.to(v2.dtype), v2, o)
        _store_rows(out, rows, heads * D, o * (1 / total)[:, None], length, D, BD)
        tl.store(lse + rows, top + tl.log2(total), mask=rows < length)


@triton.jit
def _online_softmax(q, k, v, keys, top, total, o, length, scale_log2, MASKED: tl.constexpr):
    s = _products(q, k, keys, length, MASKED)  # [BM, BN]
    new_top = tl.maximum(top, tl.max(s, 1) * scale_log2)
    p = _probabilities(s, scale_log2, new_top[:, None])
    shrink = tl.exp2(top - new_top)
    o = tl.dot(p.to(v.dtype), v, o * shrink[:, None])
    return new_top, total * shrink + tl.sum(p, 1), o


@triton.jit(do_not_specialize=_INTEGERS)
def attention_forward_tiled(
    query, key, value, out, lse, heads, length, scale_log2,
    query_batch, query_row, query_head, key_batch, key_row, key_head, value_batch, value_row, value_head,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, TAIL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Online softmax: whole blocks of BN keys without a mask, then TAIL ≥ N % BN keys: N = 578 is 9 · 64 + 16."""
    program = tl.program_id(0)
    tiles = tl.cdiv(length, BM)
    pair = program // tiles
    query = _head_start(query, pair, heads, query_batch, query_head)
    key = _head_start(key, pair, heads, key_batch, key_head)
    value = _head_start(value, pair, heads, value_batch, value_head)
    out += ((pair // heads).to(tl.int64) * length * heads + pair % heads) * D
    lse += pair.to(tl.int64) * length

    rows = program % tiles * BM + tl.arange(0, BM)
    q = _load_rows(query, rows, query_row * 8, length, D, BD)  # [BM, D]
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    o = tl.zeros([BM, BD], tl.float32)
    whole = length // BN * BN
    for start in tl.range(0, whole, BN, num_stages=STAGES):
        keys = start + tl.arange(0, BN)
        k = _load_rows(key, keys, key_row * 8, length, D, BD)  # [BN, D]
        v = _load_rows(value, keys, value_row * 8, length, D, BD)
        top, total, o = _online_softmax(q, k, v, keys, top, total, o, length, scale_log2, False)
    if TAIL > 0:
        keys = whole + tl.arange(0, TAIL)
        k = _load_rows(key, keys, key_row * 8, length, D, BD)  # [TAIL, D]
        v = _load_rows(value, keys, value_row * 8, length, D, BD)
        top, total, o = _online_softmax(q, k, v, keys, top, total, o, length, scale_log2, True)
    _store_rows(out, rows, heads * D, o * (1 / total)[:, None], length, D, BD)
    tl.store(lse + rows, top + tl.log2(total), mask=rows < length)


@triton.jit(do_not_specialize=_INTEGERS)
def attention_backward_resident(
    grad, query, key, value, out, lse, grads, heads, length, scale, scale_log2,
    grad_batch, grad_row, grad_head, query_batch, query_row, query_head,
    key_batch, key_row, key_head, value_batch, value_row, value_head,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """All gradients of one (batch, head) in one pass over the queries; K and V stay, dK and dV grow in registers.

    The delta of a row is rowsum(dO ∘ O), made before the products, or for few keys rowsum(P ∘ dP): BN ≥ N, so all keys
    are here, and the gradient of one key's logit is then exactly 0, but the sum over keys is a reduction across warps
    in the middle of the products. Logits are held transposed, [BN, BM], because the products for dV and dK then take
    them from registers.
    """
    pair = tl.program_id(0)
    grad = _head_start(grad, pair, heads, grad_batch, grad_head)
    query = _head_start(query, pair, heads, query_batch, query_head)
    key = _head_start(key, pair, heads, key_batch, key_head)
    value = _head_start(value, pair, heads, value_batch, value_head)
    out += ((pair // heads).to(tl.int64) * length * heads + pair % heads) * D
    grads += ((pair // heads).to(tl.int64) * length * 3 * heads + pair % heads) * D
    lse += pair.to(tl.int64) * length

    keys = tl.arange(0, BN)
    k = _load_rows(key, keys, key_row * 8, length, D, BD)  # [BN, D]
    v = _load_rows(value, keys, value_row * 8, length, D, BD)
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BD], tl.float32)
    for start in tl.range(0, length, BM, num_stages=STAGES):
        rows = start + tl.arange(0, BM)
        q = _load_rows(query, rows, query_row * 8, length, D, BD)  # [BM, D]
        do = _load_rows(grad, rows, grad_row * 8, length, D, BD)
        row_lse = tl.load(lse + rows, mask=rows < length, other=float("inf"))  # inf: P = 0 in rows past the end
        if BN > SUMMED:
            o = _load_rows(out, rows, heads * D, length, D, BD)
            delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
        s = tl.dot(k, tl.trans(q))  # [BN, BM]
        dp = tl.dot(v, tl.trans(do))
        # No logit exceeds the log-sum-exp but the 0 of keys past the end, where 2**(0 - lse) could overflow; their P
        # meets rows of K and V that are 0.
        p = tl.exp2(tl.minimum(tl.fma(s, scale_log2, -row_lse[None, :]), 0.0))
        dv = tl.dot(p.to(do.dtype), do, dv)
        if BN <= SUMMED:
            delta = tl.sum(p * dp, 0)
        ds = (p * (dp - delta[None, :])).to(q.dtype)
        dk = tl.dot(ds, q, dk)
        # [D, BM], transposed: its 64 rows fill the instruction of a warp group, 32 rows of [BM, D] would not.
        dq = tl.trans(tl.dot(tl.trans(k), ds))
        _store_rows(grads, rows, 3 * heads * D, dq * scale, length, D, BD)
    _store_rows(grads + heads * D, keys, 3 * heads * D, dk * scale, length, D, BD)
    _store_rows(grads + 2 * heads * D, keys, 3 * heads * D, dv, length, D, BD)


@triton.jit(do_not_specialize=_INTEGERS)
def attention_delta(
    grad, out, delta, heads, length, grad_batch, grad_row, grad_head,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(dO ∘ O), N floats a head: what the tiled backward needs of a whole row of the softmax."""
    program = tl.program_id(0)
    tiles = tl.cdiv(length, BM)
    pair = program // tiles
    rows = program % tiles * BM + tl.arange(0, BM)
    grad = _head_start(grad, pair, heads, grad_batch, grad_head)
    out += ((pair // heads).to(tl.int64) * length * heads + pair % heads) * D
    do = _load_rows(grad, rows, grad_row * 8, length, D, BD).to(tl.float32)  # [BM, D]
    o = _load_rows(out, rows, heads * D, length, D, BD).to(tl.float32)
    tl.store(delta + pair.to(tl.int64) * length + rows, tl.sum(do * o, 1), mask=rows < length)


@triton.jit(do_not_specialize=_INTEGERS)
def attention_backward_tiled(
    grad, query, key, value, lse, delta, grads, heads, length, scale, scale_log2,
    grad_batch, grad_row, grad_head, query_batch, query_row, query_head,
    key_batch, key_row, key_head, value_batch, value_row, value_head,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Even programs own BM keys and pass over the queries (dK, dV), odd ones own BM queries and pass over keys (dQ).

    The logits are computed twice, 7 products instead of 5, and in exchange no two programs write one address.
    """
    program = tl.program_id(0)
    tiles = tl.cdiv(length, BM)
    pair = program // (2 * tiles)
    grad = _head_start(grad, pair, heads, grad_batch, grad_head)
    query = _head_start(query, pair, heads, query_batch, query_head)
    key = _head_start(key, pair, heads, key_batch, key_head)
    value = _head_start(value, pair, heads, value_batch, value_head)
    grads += ((pair // heads).to(tl.int64) * length * 3 * heads + pair % heads) * D
    lse += pair.to(tl.int64) * length
    delta += pair.to(tl.int64) * length

    own = program // 2 % tiles * BM + tl.arange(0, BM)
    if program % 2 == 0:
        k = _load_rows(key, own, key_row * 8, length, D, BD)  # [BM, D]
        v = _load_rows(value, own, value_row * 8, length, D, BD)
        dk = tl.zeros([BM, BD], tl.float32)
        dv = tl.zeros([BM, BD], tl.float32)
        for start in tl.range(0, length, BN, num_stages=STAGES):
            rows = start + tl.arange(0, BN)
            q = _load_rows(query, rows, query_row * 8, length, D, BD)  # [BN, D]
            do = _load_rows(grad, rows, grad_row * 8, length, D, BD)
            row_lse = tl.load(lse + rows, mask=rows < length, other=float("inf"))
            row_delta = tl.load(delta + rows, mask=rows < length, other=0.0)
            p = _probabilities(tl.dot(k, tl.trans(q)), scale_log2, row_lse[None, :])  # [BM, BN]
            dv = tl.dot(p.to(do.dtype), do, dv)
            dp = tl.dot(v, tl.trans(do))
            dk = tl.dot((p * (dp - row_delta[None, :])).to(q.dtype), q, dk)
        _store_rows(grads + heads * D, own, 3 * heads * D, dk * scale, length, D, BD)
        _store_rows(grads + 2 * heads * D, own, 3 * heads * D, dv, length, D, BD)
    else:
        q = _load_rows(query, own, query_row * 8, length, D, BD)  # [BM, D]
        do = _load_rows(grad, own, grad_row * 8, length, D, BD)
        row_lse = tl.load(lse + own, mask=own < length, other=float("inf"))
        row_delta = tl.load(delta + own, mask=own < length, other=0.0)
        dq = tl.zeros([BM, BD], tl.float32)
        for start in tl.range(0, length, BN, num_stages=STAGES):
            keys = start + tl.arange(0, BN)
            k = _load_rows(key, keys, key_row * 8, length, D, BD)  # [BN, D]
            v = _load_rows(value, keys, value_row * 8, length, D, BD)
            s = _products(q, k, keys, length, True)  # [BM, BN]
            p = _probabilities(s, scale_log2, row_lse[:, None])
            dp = tl.dot(do, tl.trans(v))
            dq = tl.dot((p * (dp - row_delta[:, None])).to(k.dtype), k, dq)
        _store_rows(grads, own, 3 * heads * D, dq * scale, length, D, BD)
