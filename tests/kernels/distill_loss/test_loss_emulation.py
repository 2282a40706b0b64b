"""The C++ loss without torch, a thread for each row: every vector gives the op's bits, sanitizers find nothing."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deit_kernels.distill_loss.checks import distillation_call
from deit_kernels.distill_loss.reference import LossCall
from tests.kernels.augment.augment_cases import build_program, cpu_flags, needs_compiler, needs_extension
from tests.kernels.distill_loss.loss_cases import (
    BINARY,
    TARGETS,
    TEACHERS,
    WEIGHTED_KINDS,
    full_options,
    make_call,
    product,
)

pytestmark = [needs_compiler, needs_extension]

OPS = torch.ops.deit_kernels
KINDS = product(target=TARGETS, teacher=TEACHERS, heads=(2, 1), smoothing=(0.1,), reduction=("none",))
KINDS += [replace(case, reduction="none") for case in [*BINARY[::5], *WEIGHTED_KINDS[::2]]]
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]  # enum Number of csrc/loss.h
# A sanitizer's run-time does not know the code that picks an instruction set.
SANITIZED = ["-g", "-O1", "-DDEIT_NO_CLONES", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]


def call_of(case, rows: int, classes: int, dtype: torch.dtype = torch.float32) -> LossCall:
    """The arguments of the ops, without gradients."""
    call = distillation_call(**full_options(make_call(case, rows, classes, dtype)))
    return LossCall(*(value.detach() if isinstance(value, Tensor) else value for value in call))


def given(tensor: Tensor | None) -> bytes:
    """A tensor as the program reads it: its bytes from its first to its last element."""
    if tensor is None:
        return struct.pack("qqqii", 0, 0, 0, 0, 0)
    strides = (*tensor.stride(), 0)[:2]
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = torch.as_strided(tensor, (last + 1,), (1,))
    content = flat.contiguous().view(torch.uint8).numpy().tobytes()
    kind = TYPES.index(tensor.dtype) if tensor.is_floating_point() else 0
    return struct.pack("qqqii", len(content), *strides, kind, 1) + content


def run(program: Path, call: LossCall, grad: Tensor) -> list[Tensor]:
    """Base and distillation term of the rows, statistics, and the gradients of the heads that are there."""
    (rows, classes), labelled = call.logits.shape, call.teacher is not None and call.teacher.dtype == torch.int64
    listed = call.teacher.shape[1] if call.teacher_probs is not None else 0
    dense = call.target is not None and call.target.is_floating_point()
    numbers = call.alpha, call.tau, call.label_smoothing, call.teacher_smoothing, call.target_threshold or 0.0
    flags = call.soft, call.numel, call.binary, call.sum_classes, call.target_threshold is not None, 0
    header = struct.pack("qqqqdddddiiiiii", rows, classes, listed, call.ignore_index, *numbers, *flags)
    tensors = (
        call.cls, call.dist, None if labelled else call.teacher, call.teacher if labelled else None,
        call.teacher_probs, None if dense else call.target, call.partner, call.lam, call.target if dense else None,
        None if call.weight is None else call.weight[None],
    )  # fmt: skip
    source, result = program.parent / "input", program.parent / "output"
    source.write_bytes(header + b"".join(map(given, tensors)) + grad.numpy().tobytes())
    done = subprocess.run([program, source, result], capture_output=True, text=True, timeout=600)
    if done.returncode == 3:
        raise ValueError(done.stderr)
    assert done.returncode == 0, done.stderr
    content = result.read_bytes()
    terms = np.frombuffer(content, np.float64, 2 * rows).reshape(rows, 2)
    columns = call.statistics
    statistics = np.frombuffer(content, np.float32, columns * rows, terms.nbytes).reshape(rows, columns)
    found = [torch.from_numpy(part.astype(np.float32)) for part in (terms[:, 0], terms[:, 1], statistics)]
    at = terms.nbytes + statistics.nbytes
    for head in (call.cls, call.dist):
        if head is not None:
            size = rows * classes * head.dtype.itemsize
            found.append(torch.frombuffer(bytearray(content[at : at + size]), dtype=head.dtype).view(rows, classes))
            at += size
    return found


def expected(call: LossCall, grad: Tensor) -> list[Tensor]:
    _, base, distill, statistics, count = OPS.distillation_loss_forward(*call)
    needs = call.cls is not None, call.dist is not None
    gradients = OPS.distillation_loss_backward(grad, statistics, count, *call, *needs)
    return [base, distill, statistics, *(each for each, needed in zip(gradients, needs, strict=True) if needed)]


def assert_equal(program: Path, call: LossCall) -> None:
    grad = torch.linspace(-1.0, 2.0, len(call.logits))
    for ours, theirs in zip(run(program, call, grad), expected(call, grad), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("width", "flag", "needs"),
    [
        (16, "-O2", set()),
        pytest.param(32, "-mavx2", {"avx2"}, marks=pytest.mark.slow),
        pytest.param(64, "-march=x86-64-v4", {"avx512f", "avx512bw", "avx512vl", "avx512dq"}, marks=pytest.mark.slow),
    ],
)
def test_every_size_of_a_vector_gives_the_bits_of_the_op(tmp_path: Path, width: int, flag: str, needs: set) -> None:
    if not needs <= cpu_flags():
        pytest.skip(f"this processor has no {', '.join(sorted(needs - cpu_flags()))}")
    program = build_program("loss.cpp", tmp_path, "-DDEIT_NO_CLONES", f"-DDEIT_VECTOR_BYTES={width}", flag)
    for case in KINDS:
        for rows, classes, dtype in ((3, 5, torch.float32), (2, 16, torch.bfloat16), (3, 300, torch.float16)):
            assert_equal(program, call_of(case, rows, classes, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(tmp_path: Path, sanitizer: str) -> None:
    program = build_program("loss.cpp", tmp_path, *SANITIZED, f"-fsanitize={sanitizer}")
    for case in KINDS:
        for classes in (1, 2, 15, 16, 17, 33):
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                assert_equal(program, call_of(case, 4, classes, dtype))
        call = call_of(case, 4, 20)
        wide = {name: torch.zeros(8, 40)[::2, ::2].copy_(head) for name, head in call._asdict().items()
                if name in ("cls", "dist") and head is not None}  # fmt: skip
        assert_equal(program, call._replace(**wide))
        for value in (torch.nan, torch.inf, -torch.inf, 1e30):
            call.logits[1:3] = value
            run(program, call, torch.ones(4))


@pytest.mark.slow
def test_labels_that_no_class_has_are_not_read_by(tmp_path: Path) -> None:
    program = build_program("loss.cpp", tmp_path, *SANITIZED, "-fsanitize=address,undefined")
    for case in KINDS:
        call = call_of(case, 4, 20)
        for name in ("target", "partner", "teacher"):
            labels = getattr(call, name)
            if labels is None or labels.dtype != torch.int64:
                continue
            for label in (20, -1, 2**62, -(2**63)):
                bad = labels.clone()
                bad[3] = label
                with pytest.raises(ValueError, match="holds"):
                    run(program, call._replace(**{name: bad}), torch.ones(4))
