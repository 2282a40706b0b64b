"""The backward kernels; `blocks.py` has the notation.

resident   one program per (batch, head) and one pass over the queries: K and V stay in shared memory, dK and dV grow in
           registers, and dQ is summed across the warps through shared memory.
two_phase  one program per (batch, head) and two passes: tiles of queries past which the keys stream, then tiles of keys
           past which the queries stream. The logits are computed twice, 7 products instead of 5, and in exchange no
           warp waits for another one's part of a sum, and shared memory holds two small blocks only.
tiled      the same tiles, one program each, for long sequences and few heads; a kernel of its own makes delta before.

Nothing is accumulated in memory, so results repeat bit by bit.
"""

import triton
import triton.language as tl

from .blocks import INTEGERS, head_start, load_rows, make_probabilities, make_products, store_rows

SUMMED = tl.constexpr(64)  # keys up to which the resident form sums P ∘ dP instead of reading the output


@triton.jit(do_not_specialize=INTEGERS)
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
    grad = head_start(grad, pair, heads, grad_batch, grad_head)
    query = head_start(query, pair, heads, query_batch, query_head)
    key = head_start(key, pair, heads, key_batch, key_head)
    value = head_start(value, pair, heads, value_batch, value_head)
    out += ((pair // heads).to(tl.int64) * length * heads + pair % heads) * D
    grads += ((pair // heads).to(tl.int64) * length * 3 * heads + pair % heads) * D
    lse += pair.to(tl.int64) * length

    keys = tl.arange(0, BN)
    k = load_rows(key, keys, key_row * 8, length, D, BD)  # [BN, D]
    v = load_rows(value, keys, value_row * 8, length, D, BD)
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BD], tl.float32)
    for start in tl.range(0, length, BM, num_stages=STAGES):
        rows = start + tl.arange(0, BM)
        q = load_rows(query, rows, query_row * 8, length, D, BD)  # [BM, D]
        do = load_rows(grad, rows, grad_row * 8, length, D, BD)
        row_lse = tl.load(lse + rows, mask=rows < length, other=float("inf"))  # inf: P = 0 in rows past the end
        if BN > SUMMED:
            o = load_rows(out, rows, heads * D, length, D, BD)
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
        store_rows(grads, rows, 3 * heads * D, dq * scale, length, D, BD)
    store_rows(grads + heads * D, keys, 3 * heads * D, dk * scale, length, D, BD)
    store_rows(grads + 2 * heads * D, keys, 3 * heads * D, dv, length, D, BD)


@triton.jit
def _key_gradients(
    grad, query, key, value, lse, delta, grads, own, heads, length, scale, scale_log2,
    grad_row, query_row, key_row, value_row,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Store dK and dV of the BM keys `own` of one (batch, head), past which its queries stream."""
    k = load_rows(key, own, key_row * 8, length, D, BD)  # [BM, D]
    v = load_rows(value, own, value_row * 8, length, D, BD)
    dk = tl.zeros([BM, BD], tl.float32)
    dv = tl.zeros([BM, BD], tl.float32)
    for start in tl.range(0, length, BN, num_stages=STAGES):
        rows = start + tl.arange(0, BN)
        q = load_rows(query, rows, query_row * 8, length, D, BD)  # [BN, D]
        do = load_rows(grad, rows, grad_row * 8, length, D, BD)
        row_lse = tl.load(lse + rows, mask=rows < length, other=float("inf"))
        row_delta = tl.load(delta + rows, mask=rows < length, other=0.0)
        s = tl.dot(k, tl.trans(q))  # [BM, BN]
        p = make_probabilities(s, scale_log2, row_lse[None, :])  # inf for a key past the end: its row goes nowhere
        dv = tl.dot(p.to(do.dtype), do, dv)
        dp = tl.dot(v, tl.trans(do))
        dk = tl.dot((p * (dp - row_delta[None, :])).to(q.dtype), q, dk)
    store_rows(grads + heads * D, own, 3 * heads * D, dk * scale, length, D, BD)
    store_rows(grads + 2 * heads * D, own, 3 * heads * D, dv, length, D, BD)


@triton.jit(do_not_specialize=INTEGERS)
def attention_backward_two_phase(
    grad, query, key, value, out, lse, delta, grads, heads, length, scale, scale_log2,
    grad_batch, grad_row, grad_head, query_batch, query_row, query_head,
    key_batch, key_row, key_head, value_batch, value_row, value_head,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """All gradients of one (batch, head): first BM queries at a time, past which the keys stream, then the reverse.

    The first phase makes dQ, and delta = rowsum(dO ∘ O) on the way, which it leaves in memory for the second: dK and
    dV. Every dS is used by the warp that made it, so that nothing but delta is handed over. Where a gradient is exactly
    0, as that of one token's logit, this delta leaves a rounding: the table has the form from N = 65.
    """
    pair = tl.program_id(0)
    grad = head_start(grad, pair, heads, grad_batch, grad_head)
    query = head_start(query, pair, heads, query_batch, query_head)
    key = head_start(key, pair, heads, key_batch, key_head)
    value = head_start(value, pair, heads, value_batch, value_head)
    out += ((pair // heads).to(tl.int64) * length * heads + pair % heads) * D
    grads += ((pair // heads).to(tl.int64) * length * 3 * heads + pair % heads) * D
    lse += pair.to(tl.int64) * length
    delta += pair.to(tl.int64) * length

    for start in tl.range(0, length, BM, num_stages=1):
        own = start + tl.arange(0, BM)
        q = load_rows(query, own, query_row * 8, length, D, BD)  # [BM, D]
        do = load_rows(grad, own, grad_row * 8, length, D, BD)
        o = load_rows(out, own, heads * D, length, D, BD)
        own_lse = tl.load(lse + own, mask=own < length, other=float("inf"))  # inf: P = 0 in rows past the end
        own_delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
        tl.store(delta + own, own_delta, mask=own < length)
        dq = tl.zeros([BM, BD], tl.float32)
        for other in tl.range(0, length, BN, num_stages=STAGES):
            keys = other + tl.arange(0, BN)
            k = load_rows(key, keys, key_row * 8, length, D, BD)  # [BN, D]
            v = load_rows(value, keys, value_row * 8, length, D, BD)
            s = tl.dot(q, tl.trans(k))  # [BM, BN]
            dp = tl.dot(do, tl.trans(v))
            p = tl.exp2(tl.minimum(tl.fma(s, scale_log2, -own_lse[:, None]), 0.0))  # min: as in the resident form
            dq = tl.dot((p * (dp - own_delta[:, None])).to(k.dtype), k, dq)
        store_rows(grads, own, 3 * heads * D, dq * scale, length, D, BD)

    tl.debug_barrier()  # the deltas of all warps are in memory: a barrier orders them for the threads of its program
    for start in tl.range(0, length, BM, num_stages=1):
        own = start + tl.arange(0, BM)
        _key_gradients(
            grad, query, key, value, lse, delta, grads, own, heads, length, scale, scale_log2,
            grad_row, query_row, key_row, value_row, D, BD, BM, BN, STAGES,
        )  # fmt: skip


@triton.jit(do_not_specialize=INTEGERS)
def attention_delta(
    grad, out, delta, heads, length, grad_batch, grad_row, grad_head,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(dO ∘ O), N floats a head: what the tiled backward needs of a whole row of the softmax."""
    program = tl.program_id(0)
    tiles = tl.cdiv(length, BM)
    pair = program // tiles
    rows = program % tiles * BM + tl.arange(0, BM)
    grad = head_start(grad, pair, heads, grad_batch, grad_head)
    out += ((pair // heads).to(tl.int64) * length * heads + pair % heads) * D
    do = load_rows(grad, rows, grad_row * 8, length, D, BD).to(tl.float32)  # [BM, D]
    o = load_rows(out, rows, heads * D, length, D, BD).to(tl.float32)
    tl.store(delta + pair.to(tl.int64) * length + rows, tl.sum(do * o, 1), mask=rows < length)


@triton.jit(do_not_specialize=INTEGERS)
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
    grad = head_start(grad, pair, heads, grad_batch, grad_head)
    query = head_start(query, pair, heads, query_batch, query_head)
    key = head_start(key, pair, heads, key_batch, key_head)
    value = head_start(value, pair, heads, value_batch, value_head)
    grads += ((pair // heads).to(tl.int64) * length * 3 * heads + pair % heads) * D
    lse += pair.to(tl.int64) * length
    delta += pair.to(tl.int64) * length

    own = program // 2 % tiles * BM + tl.arange(0, BM)
    if program % 2 == 0:
        _key_gradients(
            grad, query, key, value, lse, delta, grads, own, heads, length, scale, scale_log2,
            grad_row, query_row, key_row, value_row, D, BD, BM, BN, STAGES,
        )  # fmt: skip
    else:
        q = load_rows(query, own, query_row * 8, length, D, BD)  # [BM, D]
        do = load_rows(grad, own, grad_row * 8, length, D, BD)
        row_lse = tl.load(lse + own, mask=own < length, other=float("inf"))
        row_delta = tl.load(delta + own, mask=own < length, other=0.0)
        dq = tl.zeros([BM, BD], tl.float32)
        for start in tl.range(0, length, BN, num_stages=STAGES):
            keys = start + tl.arange(0, BN)
            k = load_rows(key, keys, key_row * 8, length, D, BD)  # [BN, D]
            v = load_rows(value, keys, value_row * 8, length, D, BD)
            s = make_products(q, k, keys, length, True)  # [BM, BN]
            p = make_probabilities(s, scale_log2, row_lse[:, None])
            dp = tl.dot(do, tl.trans(v))
            dq = tl.dot((p * (dp - row_delta[:, None])).to(k.dtype), k, dq)
        store_rows(grads, own, 3 * heads * D, dq * scale, length, D, BD)
