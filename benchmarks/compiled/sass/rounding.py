"""Arithmetic of the machine code that NumPy lacks: fused multiply-add, conversions, approximations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U32, U64, I32, I64, F32, F64 = np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64


def two_sum(a: NDArray, b: NDArray) -> tuple[NDArray, NDArray]:
    """The rounded sum and what it lacks, exactly (Knuth)."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


def two_product(a: NDArray, b: NDArray) -> tuple[NDArray, NDArray]:
    """The rounded product and what it lacks, exactly (Dekker), where nothing overflows."""

    def halves(x: NDArray) -> tuple[NDArray, NDArray]:
        scaled = x * F64(134217729)
        high = scaled - (scaled - x)
        return high, x - high

    (a1, a2), (b1, b2), product = halves(a), halves(b), a * b
    return product, a2 * b2 - (((product - a1 * b1) - a2 * b1) - a1 * b2)


def odd_sum(a: NDArray, b: NDArray) -> NDArray:
    """a + b rounded to odd: a later rounding to fewer bits is then as if it were the only one."""
    total, rest = two_sum(np.asarray(a, F64), np.asarray(b, F64))
    bits = total.view(I64)
    step = np.where((rest > 0) == (total > 0), I64(1), I64(-1))
    return np.where((rest != 0) & (bits & 1 == 0) & np.isfinite(rest), bits + step, bits).view(F64)


def exact_product(a: NDArray, b: NDArray) -> NDArray:
    """The product of two float32, exact in float64."""
    return np.asarray(a).astype(F64) * np.asarray(b).astype(F64)


def odd_fused(a: NDArray, b: NDArray, c: NDArray) -> NDArray:
    """a * b + c of float32, rounded to odd in float64."""
    return odd_sum(exact_product(a, b), np.asarray(c).astype(F64))


def fused(a: NDArray, b: NDArray, c: NDArray) -> NDArray:
    """a * b + c of float32, rounded once."""
    return odd_fused(a, b, c).astype(F32)


def fused_double(a: NDArray, b: NDArray, c: NDArray) -> NDArray:
    """a * b + c of float64, rounded once (Boldo and Melquiond 2008), where no intermediate overflows or underflows."""
    product, product_rest = two_product(a, b)
    upper, lower = two_sum(np.asarray(c), product_rest)
    total, rest = two_sum(product, upper)
    exact = total + odd_sum(rest, lower)
    return np.where(np.isfinite(exact), exact, a * b + c)


def _approximate(compute):
    return lambda x: compute(np.asarray(x).astype(F64)).astype(F32)


def _high_word(compute):
    return lambda x: (compute((x.view(U32).astype(U64) << U64(32)).view(F64)).view(U64) >> U64(32)).astype(U32)


SPECIAL = {
    "RCP": _approximate(lambda x: 1 / x),
    "RSQ": _approximate(lambda x: 1 / np.sqrt(x)),
    "SQRT": _approximate(np.sqrt),
    "EX2": _approximate(np.exp2),
    "LG2": _approximate(np.log2),
    "RCP64H": _high_word(lambda x: 1 / x),
    "RSQ64H": _high_word(lambda x: 1 / np.sqrt(x)),
}  # fmt: skip

_KINDS = {"F32": F32, "F64": F64, "S32": I32, "U32": U32, "S64": I64, "U64": U64, "S16": np.int16, "U16": np.uint16,
          "S8": np.int8, "U8": np.uint8}  # fmt: skip
_MODES = {"TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil}


def conversion(base: str, names: list[str]) -> tuple[type, type, str]:
    """(type read, type written, rounding) of an opcode such as F2I.U32.F64.TRUNC."""
    kinds = [_KINDS[name] for name in names if name in _KINDS]
    mode = next((name for name in names if name in (*_MODES, "RP", "RM", "RZ")), "RN")
    floating = [kind for kind in kinds if np.dtype(kind).kind == "f"]
    integral = [kind for kind in kinds if np.dtype(kind).kind != "f"]
    if base in ("I2F", "I2FP"):
        return (integral or [I32])[0], (floating or [F32])[0], mode
    if base == "F2I":
        return (floating or [F32])[0], (integral or [I32])[0], mode
    if base == "F2F":
        return floating[1], floating[0], mode
    return (floating or [F32])[0], (floating or [F32])[0], mode if mode != "RN" else "NEAREST"


def integers(bits: NDArray, kind: type) -> NDArray:
    """The low bits of words as integers of `kind`."""
    size = np.dtype(kind)
    return bits.view(kind) if size.itemsize >= 4 else bits.astype(size.str.replace("i", "u")).view(kind)


def convert(value: NDArray, target: type, mode: str) -> NDArray:
    """To a wider or narrower type; floats to integers are cut off at the ends, and NaN is 0."""
    value = np.asarray(value)
    kind = np.dtype(target)
    if kind.kind == "f":
        if mode in (*_MODES, "NEAREST"):
            return _MODES.get(mode, np.rint)(value).astype(target)
        near = value.astype(target)
        if mode == "RN":
            return near
        below, above = near.astype(np.longdouble), value.astype(np.longdouble)  # of 64 bits: both are exact
        if mode == "RZ":
            return np.where(np.abs(below) > np.abs(above), np.nextafter(near, target(0)), near)
        wrong = below < above if mode == "RP" else below > above
        toward = target(np.inf if mode == "RP" else -np.inf)
        return np.where(wrong, np.nextafter(near, toward), near)
    whole = _MODES.get(mode, np.trunc if mode == "RZ" else np.rint)(value.astype(F64))
    info = np.iinfo(kind)
    fits = (whole >= F64(info.min)) & (whole < F64(info.max) + 1)
    inside = np.where(fits, whole, 0).astype(kind if info.bits >= 32 else I64)
    result = np.where(whole >= F64(info.max) + 1, info.max, np.where(whole < F64(info.min), info.min, inside))
    result = np.where(np.isnan(whole), 0, result)
    return result.astype(kind) if info.bits >= 32 else result.astype(I32)


def bfloat16(value: NDArray, cut: bool = False) -> NDArray:
    """The bits of float32 as bfloat16, to the nearest, of two the even one; `cut`: towards 0."""
    bits = np.asarray(value).view(U32)
    rounded = bits >> U32(16) if cut else bits + U32(0x7FFF) + (bits >> U32(16) & U32(1)) >> U32(16)
    return np.where(np.isnan(value), U32(0x7FFF), rounded)


def float16(value: NDArray, cut: bool = False) -> NDArray:
    """The bits of float32 as float16, to the nearest, of two the even one; `cut`: towards 0."""
    value = np.asarray(value)
    near = convert(value, np.float16, "RZ") if cut else value.astype(np.float16)
    return near.view(np.uint16).astype(U32)


def accumulated(products: NDArray, sums: NDArray) -> NDArray:
    """Sums with eight products more, (…, 8) and (…), as tensor cores of sm_80 add them; float64 that is float32.

    Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor cores" (2021): products are exact; all nine
    numbers are aligned to the largest, cut off and added; the sum is cut off to 24 bits. How many bits an aligned
    number keeps below those of the largest is not certain: here none, which is the least that they found.
    """
    terms = np.concatenate([products, sums[..., None]], axis=-1)
    unit = np.ldexp(1.0, np.frexp(np.abs(terms).max(-1))[1] - 24)
    total = np.trunc(terms / unit[..., None]).sum(-1) * unit
    bits = total.view(U64) & U64(0xFFFFFFFFE0000000)
    return np.where(np.isfinite(total), bits.view(F64), terms.sum(-1))
