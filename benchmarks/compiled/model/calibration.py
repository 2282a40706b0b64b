"""The model against a public kernel whose speed on an H100 is published: Triton's tutorial of fused attention.

    python -m benchmarks.compiled.model.calibration

The kernel is written here in the tutorial's form of that time (block pointers, online softmax, float16, not causal). It
is compiled for sm_90 by the Triton at hand, the published ones were compiled by those of 2024: a part of the difference
is the compiler's. Sizes are those of the FlashAttention-3 paper: 16,384 tokens, 2,048 features in all heads.

    chart   128 queries, 64 keys, 4 warps, 3 stages. Shah et al., "FlashAttention-3" (2024), charts of the forward pass
            without a mask on an H100 80GB SXM5, bars named Triton, as others have transcribed the numbers above them.
    bench   the best of the tutorial's configurations, here with 8 warps. pytorch/benchmark pull request 2391 (July
            2024), column triton_tutorial_flash_v2 at 128 features, H100.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import triton
import triton.language as tl

from benchmarks.compiled.model.predict import Prediction, predict
from benchmarks.compiled.resources import compile_case, program_of, resources_of
from deit_kernels.compile_case import CompileCase, Launch

CAPABILITY = 90
TOKENS, WIDTH = 16384, 2048
BLOCK_M, BLOCK_N = 128, 64


@dataclass(frozen=True)
class Published:
    """A speed of the forward pass in TFLOP/s, two products counted.

    Attributes:
        source: "chart" or "bench", see the module's docstring.
    """

    source: str
    features: int
    length: int
    warps: int
    stages: int
    teraflops: float


PUBLISHED = [
    Published("chart", 64, 512, 4, 3, 340),
    Published("chart", 64, 1024, 4, 3, 382),
    Published("chart", 64, 2048, 4, 3, 396),
    Published("chart", 64, 4096, 4, 3, 400),
    Published("chart", 128, 512, 4, 3, 323),
    Published("chart", 128, 1024, 4, 3, 372),
    Published("chart", 128, 2048, 4, 3, 389),
    Published("chart", 128, 4096, 4, 3, 389),
    Published("bench", 128, 1024, 8, 3, 389.7),
    Published("bench", 128, 4096, 8, 3, 458.4),
]


@triton.jit
def fused_attention(
    query, key, value, out, lse, length, scale_log2, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """One block of BM queries of one (batch, head); tensors (batch · heads, length, D), length divisible by both."""
    start, first = tl.program_id(1).to(tl.int64) * length * D, tl.program_id(0) * BM
    query_block = tl.make_block_ptr(query + start, (length, D), (D, 1), (first, 0), (BM, D), (1, 0))
    key_block = tl.make_block_ptr(key + start, (D, length), (1, D), (0, 0), (D, BN), (0, 1))
    value_block = tl.make_block_ptr(value + start, (length, D), (D, 1), (0, 0), (BN, D), (1, 0))
    out_block = tl.make_block_ptr(out + start, (length, D), (D, 1), (first, 0), (BM, D), (1, 0))
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.full([BM], 1.0, tl.float32)
    o = tl.zeros([BM, D], tl.float32)
    q = tl.load(query_block)  # [BM, D]
    for _ in range(0, length, BN):
        s = tl.dot(q, tl.load(key_block))  # [BM, BN]
        new_top = tl.maximum(top, tl.max(s, 1) * scale_log2)
        p = tl.exp2(s * scale_log2 - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(value_block)  # [BN, D]
        o = tl.dot(p.to(v.dtype), v, o * shrink[:, None])
        top = new_top
        key_block, value_block = tl.advance(key_block, (0, BN)), tl.advance(value_block, (BN, 0))
    tl.store(lse + tl.program_id(1) * length + first + tl.arange(0, BM), top + tl.log2(total))
    tl.store(out_block, (o / total[:, None]).to(out.dtype.element_ty))


def case_of(published: Published) -> CompileCase:
    """The tutorial's kernel at a published size."""
    length, features = published.length, published.features
    pairs, tiles, matrix = TOKENS // length * (WIDTH // features), length // BLOCK_M, 2 * length * features
    pointers = {name: "*fp16" for name in ("query", "key", "value", "out")} | {"lse": "*fp32"}
    constexprs = {"D": features, "BM": BLOCK_M, "BN": BLOCK_N}
    return CompileCase(
        name=f"fused_attention n{length} d{features} {published.warps} warps",
        kernel=fused_attention,
        signature=pointers | {"length": "i32", "scale_log2": "fp32"} | dict.fromkeys(constexprs, "constexpr"),
        constexprs=constexprs,
        divisible_by_16=frozenset(pointers) | {"length"},
        num_warps=published.warps,
        num_stages=published.stages,
        launch=Launch(
            pairs * tiles, (length // BLOCK_N,), loaded=matrix / tiles + 2 * matrix,
            stored=(matrix + 4 * length) / tiles, fetched=3 * matrix / tiles,
        ),
    )  # fmt: skip


def teraflops(published: Published, prediction: Prediction) -> float:
    """Speed of the replay, before `predict.CORRECTION`."""
    operations = 4 * published.length * TOKENS * WIDTH
    return operations / prediction.card.microseconds(prediction.replay.clocks) / 1e6


def compare() -> Iterator[tuple[Published, float]]:
    """Every published speed and the replay's."""
    for published in PUBLISHED:
        case = case_of(published)
        compiled = compile_case(case, CAPABILITY)
        program = program_of(compiled)
        resident = resources_of(compiled, program, CAPABILITY).warps // case.num_warps
        prediction = predict(program, case.launch, CAPABILITY, warps=case.num_warps, resident=resident)
        yield published, teraflops(published, prediction)


def main() -> None:
    for published, speed in compare():
        print(
            f"{published.source}  d{published.features:<4} N {published.length:<5} {published.warps} warps  replay "
            f"{speed:4.0f} TFLOP/s, published {published.teraflops:4.0f}: {speed / published.teraflops - 1:+.0%}"
        )


if __name__ == "__main__":
    main()
