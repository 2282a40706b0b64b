"""The kernels of the distillation loss: every form and number of classes, and one traced call of each."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor

from benchmarks.compiled.cases.case import CompileCase, TraceCase, TracedCall
from deit_kernels.distill_loss import kernels, reference
from deit_kernels.distill_loss.launch import MEAN_OPTIONS, backward_arguments, backward_operands, forward_arguments
from deit_kernels.distill_loss.reference import LossCall

# Target, teacher and heads. The first is the recipe of the paper, the binary ones that of DeiT III.
_FORMS = {
    "hard mixed": ("mixed", "logits", 2),
    "soft dense": ("dense", "soft", 2),
    "labels one head": ("labels", "labels", 1),
    "topk": ("labels", "topk", 2),
    "cross entropy": ("labels", "none", 1),
    "binary": ("mixed", "none", 1),
    "binary dense": ("dense", "none", 1),
    "binary hard": ("mixed", "logits", 2),
    "hard weighted": ("mixed", "logits", 2),
    "binary weighted": ("mixed", "none", 1),
}
# Every form at 1000 classes (ImageNet-1k), the two main ones at the longest single tile and ImageNet-21k too.
_SIZES = [(form, 1000) for form in _FORMS]
_SIZES += [(form, classes) for form in ("hard mixed", "soft dense", "binary") for classes in (4096, 21840, 21841)]
_MEAN = {"STATISTICS": reference.STATISTICS, "BY_WEIGHTS": False} | MEAN_OPTIONS
_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64"}


def compile_cases() -> list[CompileCase]:
    """Every form and number of classes that is reported."""
    cases = []
    for form, classes in _SIZES:
        call = example(form, classes, torch.bfloat16)
        for direction, (arguments, options) in example_arguments(call).items():
            kernel = getattr(kernels, f"{direction}_kernel")
            cases.append(_case(f"loss_{direction} {form} c{classes}", kernel, arguments, options))
    vector = torch.empty(8)
    mean = (*[vector] * 3, None, *[vector] * 4, len(vector), 0.5)
    cases.append(_case("loss_mean", kernels.mean_kernel, mean, _MEAN))
    return cases


def trace_cases() -> list[TraceCase]:
    """Both passes of the same: a row in one tile, in several, and with an edge."""
    cases = [TraceCase("loss_mean", _trace_mean)]
    for form, classes in _SIZES:
        for direction, run in (("forward", _trace_forward), ("backward", _trace_backward)):
            cases.append(TraceCase(f"loss_{direction} {form} c{classes}", functools.partial(run, form, classes)))
    return cases


def example(form: str, classes: int, dtype: torch.dtype, rows: int = 8) -> LossCall:
    """A call of one form, with random contents."""
    target, teacher, heads = _FORMS[form]
    generator = torch.Generator().manual_seed(0)

    def matrix() -> Tensor:
        return torch.randn(rows, classes, generator=generator).to(dtype)

    labels, partner = torch.randint(classes, (2, rows), generator=generator)
    topk = matrix().float().softmax(1).topk(10)
    teachers = {"none": None, "logits": matrix(), "soft": matrix(), "labels": partner, "topk": topk.indices}
    return LossCall(
        cls=matrix(),
        dist=matrix() if heads == 2 else None,
        teacher=teachers[teacher],
        teacher_probs=topk.values if teacher == "topk" else None,
        target=matrix().float().softmax(1).to(dtype) if target == "dense" else labels,
        partner=partner if target == "mixed" else None,
        lam=torch.rand(rows, generator=generator) if target == "mixed" else None,
        weight=torch.rand(classes, generator=generator) if form.endswith("weighted") else None,
        soft=teacher in ("soft", "topk"), alpha=0.0 if teacher == "none" else 0.5, tau=3.0, numel=False,
        label_smoothing=0.0 if form.startswith("binary") else 0.1, teacher_smoothing=0.0, ignore_index=-100, mean=True,
        binary=form.startswith("binary"), target_threshold=0.0 if form.startswith("binary") else None,
    )  # fmt: skip


def example_arguments(call: LossCall) -> dict[str, tuple[tuple, dict[str, Any]]]:
    """Arguments and options of both kernels for a call whose heads all need a gradient."""
    rows = torch.empty(call.logits.shape[0])
    statistics, scalar = torch.empty(len(rows), call.statistics), torch.empty(())
    gradients = [None if head is None else torch.empty_like(head) for head in (call.cls, call.dist)]
    distill = call.teacher is not None
    return {
        "forward": forward_arguments(call, None, rows, rows, statistics),
        "backward": backward_arguments(scalar, statistics, scalar, call, True, distill, *gradients),
    }


def _case(name: str, kernel: triton.JITFunction, arguments: tuple, options: dict[str, Any]) -> CompileCase:
    """What the JIT makes of these arguments: tensors are pointers, numbers i32 and fp32, None is a constexpr."""
    given = dict(zip(kernel.arg_names, arguments, strict=False))
    constexprs: dict[str, Any] = {name: value for name, value in given.items() if value is None}
    constexprs |= {name: value for name, value in options.items() if name in kernel.arg_names}
    pointers = {name: f"*{_TYPES[value.dtype]}" for name, value in given.items() if isinstance(value, Tensor)}
    numbers = {name: "fp32" if isinstance(value, float) else "i32" for name, value in given.items()}
    types = numbers | pointers | dict.fromkeys(constexprs, "constexpr")
    return CompileCase(
        name=name,
        kernel=kernel,
        signature={argument: types[argument] for argument in kernel.arg_names},
        constexprs=constexprs,
        divisible_by_16=frozenset(pointers) - set(kernels.UNSPECIALISED),
        num_warps=options["num_warps"],
        num_stages=options["num_stages"],
        trace=name,
    )


def _trace_forward(form: str, classes: int) -> TracedCall:
    call = example(form, classes, torch.float16)
    rows = len(call.logits)
    base, distill, statistics = torch.empty(rows), torch.empty(rows), torch.empty(rows, call.statistics)
    arguments, options = forward_arguments(call, None, base, distill, statistics)
    kernels.forward_kernel[(rows,)](*arguments, **options)
    inputs = {name: value for name, value in call._asdict().items() if isinstance(value, Tensor)}
    outputs = {"base": base, "distill": distill, "statistics": statistics}
    return TracedCall(inputs, outputs, exponentials=_exponentials(call))


def _exponentials(call: LossCall) -> int:
    """One a logit of each head and of a soft teacher; a TopK's probabilities are given."""
    distributions = (1 if call.dist is None else 2) + (call.soft and call.teacher_probs is None)
    return distributions * call.logits.numel()


def _trace_mean() -> TracedCall:
    base, distill = torch.randn(2, 1500)
    statistics = torch.ones(1500, reference.STATISTICS)
    outputs = {name: torch.empty(()) for name in ("loss", "base", "distill", "count")}
    kernels.mean_kernel[(1,)](base, distill, statistics, None, *outputs.values(), len(base), 0.5, **_MEAN)
    weights = statistics[:, reference.ROW_WEIGHT]
    return TracedCall({"base rows": base, "distill rows": distill, "weights": weights}, outputs)


def _trace_backward(form: str, classes: int) -> TracedCall:
    call = example(form, classes, torch.float16)
    *_, statistics, count = reference.forward(call)
    grad, distill = torch.ones(()), call.teacher is not None
    gradients = {
        name: torch.empty_like(head) for name, head in (("cls", call.cls), ("dist", call.dist)) if head is not None
    }
    arguments, options = backward_arguments(
        grad, statistics, count, call, True, distill, gradients["cls"], gradients.get("dist")
    )
    kernels.backward_kernel[(len(statistics), -(-classes // options["BLOCK"]))](*arguments, **options)
    read = [each for each in backward_operands(call, True, distill) if isinstance(each, Tensor)]
    inputs = {f"{tensor.data_ptr()}": tensor for tensor in read}  # one head is listed twice
    inputs |= {"grad": grad, "statistics": statistics, "count": count}
    return TracedCall(inputs, gradients, exponentials=_exponentials(call))
