"""The forward kernels, for the short sequences of vision transformers; `blocks.py` has the notation.

resident  one program per (batch, head): K and V are loaded once and stay in shared memory while the queries stream by.
          Every byte is read once and written once, and the softmax is exact, without rescaling.
tiled     one program per tile of queries, for sequences whose keys do not fit beside the arithmetic.
"""

import triton
import triton.language as tl

from .blocks import INTEGERS, head_start, load_rows, make_probabilities, make_products, store_rows


@triton.jit(do_not_specialize=INTEGERS)
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
    query = head_start(query, pair, heads, query_batch, query_head)
    key = head_start(key, pair, heads, key_batch, key_head)
    value = head_start(value, pair, heads, value_batch, value_head)
    out += ((pair // heads).to(tl.int64) * length * heads + pair % heads) * D
    lse += pair.to(tl.int64) * length

    keys0 = tl.arange(0, P0)
    k0 = load_rows(key, keys0, key_row * 8, length, D, BD)  # [P0, D]
    v0 = load_rows(value, keys0, value_row * 8, length, D, BD)
    if P1 > 0:
        keys1 = P0 + tl.arange(0, P1)
        k1 = load_rows(key, keys1, key_row * 8, length, D, BD)
        v1 = load_rows(value, keys1, value_row * 8, length, D, BD)
    if P2 > 0:
        keys2 = P0 + P1 + tl.arange(0, P2)
        k2 = load_rows(key, keys2, key_row * 8, length, D, BD)
        v2 = load_rows(value, keys2, value_row * 8, length, D, BD)

    for start in tl.range(program % splits * BM, length, splits * BM, num_stages=STAGES):
        rows = start + tl.arange(0, BM)
        q = load_rows(query, rows, query_row * 8, length, D, BD)  # [BM, D]
        s0 = make_products(q, k0, keys0, length, P1 == 0)  # [BM, P0]
        top = tl.max(s0, 1)  # [BM]
        if P1 > 0:
            s1 = make_products(q, k1, keys1, length, P2 == 0)
            top = tl.maximum(top, tl.max(s1, 1))
        if P2 > 0:
            s2 = make_products(q, k2, keys2, length, True)
            top = tl.maximum(top, tl.max(s2, 1))
        top *= scale_log2
        p0 = make_probabilities(s0, scale_log2, top[:, None])
        total = tl.sum(p0, 1)  # [BM]
        o = tl.dot(p0.to(v0.dtype), v0)  # [BM, D]
        if P1 > 0:
            p1 = make_probabilities(s1, scale_log2, top[:, None])
            total += tl.sum(p1, 1)
            o = tl.dot(p1.to(v1.dtype), v1, o)
        if P2 > 0:
            p2 = make_probabilities(s2, scale_log2, top[:, None])
            total += tl.sum(p2, 1)
            o = tl.dot(p2.to(v2.dtype), v2, o)
        store_rows(out, rows, heads * D, o * (1 / total)[:, None], length, D, BD)
        tl.store(lse + rows, top + tl.log2(total), mask=rows < length)


@triton.jit
def _online_softmax(q, k, v, keys, top, total, o, length, scale_log2, MASKED: tl.constexpr):
    s = make_products(q, k, keys, length, MASKED)  # [BM, BN]
    new_top = tl.maximum(top, tl.max(s, 1) * scale_log2)
    p = make_probabilities(s, scale_log2, new_top[:, None])
    shrink = tl.exp2(top - new_top)
    o = tl.dot(p.to(v.dtype), v, o * shrink[:, None])
    return new_top, total * shrink + tl.sum(p, 1), o


@triton.jit(do_not_specialize=INTEGERS)
def attention_forward_tiled(
    query, key, value, out, lse, heads, length, scale_log2,
    query_batch, query_row, query_head, key_batch, key_row, key_head, value_batch, value_row, value_head,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, TAIL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Online softmax: whole blocks of BN keys without a mask, then TAIL ≥ N % BN keys: N = 578 is 9 · 64 + 16."""
    program = tl.program_id(0)
    tiles = tl.cdiv(length, BM)
    pair = program // tiles
    query = head_start(query, pair, heads, query_batch, query_head)
    key = head_start(key, pair, heads, key_batch, key_head)
    value = head_start(value, pair, heads, value_batch, value_head)
    out += ((pair // heads).to(tl.int64) * length * heads + pair % heads) * D
    lse += pair.to(tl.int64) * length

    rows = program % tiles * BM + tl.arange(0, BM)
    q = load_rows(query, rows, query_row * 8, length, D, BD)  # [BM, D]
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    o = tl.zeros([BM, BD], tl.float32)
    whole = length // BN * BN
    for start in tl.range(0, whole, BN, num_stages=STAGES):
        keys = start + tl.arange(0, BN)
        k = load_rows(key, keys, key_row * 8, length, D, BD)  # [BN, D]
        v = load_rows(value, keys, value_row * 8, length, D, BD)
        top, total, o = _online_softmax(q, k, v, keys, top, total, o, length, scale_log2, False)
    if TAIL > 0:
        keys = whole + tl.arange(0, TAIL)
        k = load_rows(key, keys, key_row * 8, length, D, BD)  # [TAIL, D]
        v = load_rows(value, keys, value_row * 8, length, D, BD)
        top, total, o = _online_softmax(q, k, v, keys, top, total, o, length, scale_log2, True)
    store_rows(out, rows, heads * D, o * (1 / total)[:, None], length, D, BD)
    tl.store(lse + rows, top + tl.log2(total), mask=rows < length)
