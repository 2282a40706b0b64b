"""Launch the kernels of the loss, and the cases by which the benchmarks judge them without a GPU."""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor

from ..compile_case import CompileCase, TraceCase, TracedCall
from . import kernels, reference
from .operands import Tiling, backward_arguments, backward_operands, forward_arguments
from .reference import LossCall

_MEAN_BLOCK = 1024


def forward(call: LossCall, tiling: Tiling | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, base term, distillation term, statistics, number of rows that count), as `reference.forward`."""
    rows = call.logits.shape[0]
    new = {"dtype": torch.float32, "device": call.logits.device}
    base, distill = torch.empty(rows, **new), torch.empty(rows, **new)
    loss = None if call.mean else torch.empty(rows, **new)
    statistics, count = torch.empty(rows, reference.STATISTICS, **new), torch.empty(() if call.mean else 0, **new)
    arguments, options = forward_arguments(call, loss, base, distill, statistics, tiling)
    with torch.cuda.device_of(call.logits):
        kernels.forward_kernel[(rows,)](*arguments, **options)
        if loss is not None:
            return loss, base, distill, statistics, count
        means = [torch.empty((), **new) for _ in range(3)]
        kernels.mean_kernel[(1,)](
            base, distill, statistics, *means, count, rows, call.alpha, BLOCK=_MEAN_BLOCK, num_warps=4, num_stages=1
        )
    return *means, statistics, count


def backward(
    grad: Tensor, statistics: Tensor, count: Tensor, call: LossCall, need_cls: bool, need_dist: bool,
    tiling: Tiling | None = None,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of the heads that need one: `reference.backward`'s results."""
    rows, classes = call.logits.shape
    base = call.cls is not None and call.alpha < 1 and need_cls
    distill = call.teacher is not None and call.alpha > 0 and (need_cls if call.dist is None else need_dist)
    grad_cls = _empty_like(call.cls) if need_cls else None
    grad_dist = _empty_like(call.dist) if need_dist else None
    arguments, options = backward_arguments(grad, statistics, count, call, base, distill, grad_cls, grad_dist, tiling)
    with torch.cuda.device_of(call.logits):
        kernels.backward_kernel[(rows, triton.cdiv(classes, options["BLOCK"]))](*arguments, **options)
    return grad_cls, grad_dist


def _empty_like(logits: Tensor) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


# What compile_cases and trace_cases cover: target, teacher, heads. The first is the paper's recipe.
_FORMS = {
    "hard mixed": ("mixed", "logits", 2),
    "soft dense": ("dense", "soft", 2),
    "labels one head": ("labels", "labels", 1),
    "topk": ("labels", "topk", 2),
    "cross entropy": ("labels", "none", 1),
}


def compile_cases() -> list[CompileCase]:
    """Every form at 1000 classes (ImageNet-1k), the two main ones at the longest single tile and ImageNet-21k too."""
    sizes = [(form, 1000) for form in _FORMS]
    sizes += [(form, classes) for form in ("hard mixed", "soft dense") for classes in (4096, 21840, 21841)]
    cases = []
    for form, classes in sizes:
        call = example(form, classes, torch.bfloat16, rows=8)
        for direction, (arguments, options) in example_arguments(call).items():
            kernel = getattr(kernels, f"{direction}_kernel")
            cases.append(_case(f"loss_{direction} {form} c{classes}", kernel, arguments, options))
    vector = torch.empty(8)
    arguments = (*[vector] * 7, 8, 0.5)
    cases.append(
        _case("loss_mean", kernels.mean_kernel, arguments, {"BLOCK": _MEAN_BLOCK, "num_warps": 4, "num_stages": 1})
    )
    return cases


def _case(name: str, kernel: triton.JITFunction, arguments: tuple, options: dict[str, object]) -> CompileCase:
    """The case that the JIT makes of these arguments: tensors give pointers, numbers i32 and fp32, None a constexpr."""
    given = dict(zip(kernel.arg_names, arguments, strict=False))
    constexprs = {name: value for name, value in given.items() if value is None}
    constexprs |= {name: value for name, value in options.items() if name in kernel.arg_names}
    pointers = {name: f"*{_TYPES[value.dtype]}" for name, value in given.items() if isinstance(value, Tensor)}
    numbers = {name: "fp32" if isinstance(value, float) else "i32" for name, value in given.items()}
    signature = numbers | pointers | dict.fromkeys(constexprs, "constexpr")
    return CompileCase(
        name=name,
        kernel=kernel,
        signature={argument: signature[argument] for argument in kernel.arg_names},
        constexprs=constexprs,
        divisible_by_16=frozenset(pointers) - set(kernels.UNSPECIALISED),
        num_warps=options["num_warps"],
        num_stages=options["num_stages"],
    )


_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64"}


def example(form: str, classes: int, dtype: torch.dtype, rows: int) -> LossCall:
    """A call of one form, with random contents."""
    target, teacher, heads = _FORMS[form]
    generator = torch.Generator().manual_seed(0)

    def matrix() -> Tensor:
        return torch.randn(rows, classes, generator=generator).to(dtype)

    labels, partner = torch.randint(classes, (2, rows), generator=generator)
    topk = (matrix().float() / 3).softmax(1).topk(10) if teacher == "topk" else None
    teachers = {"logits": matrix, "soft": matrix, "labels": lambda: partner, "topk": lambda: topk.indices}
    return LossCall(
        cls=matrix(),
        dist=matrix() if heads == 2 else None,
        teacher=None if teacher == "none" else teachers[teacher](),
        teacher_probs=topk.values if topk else None,
        target=matrix().float().softmax(1).to(dtype) if target == "dense" else labels,
        partner=partner if target == "mixed" else None,
        lam=torch.rand(rows, generator=generator) if target == "mixed" else None,
        soft=teacher in ("soft", "topk"), alpha=0.0 if teacher == "none" else 0.5, tau=3.0, numel=False,
        label_smoothing=0.1, teacher_smoothing=0.0, ignore_index=-100, mean=True,
    )  # fmt: skip


def example_arguments(call: LossCall) -> dict[str, tuple[tuple, dict[str, object]]]:
    rows = torch.empty(call.logits.shape[0])
    statistics, scalar = torch.empty(len(rows), reference.STATISTICS), torch.empty(())
    grad_dist = None if call.dist is None else _empty_like(call.dist)
    distill = call.teacher is not None
    return {
        "forward": forward_arguments(call, None, rows, rows, statistics),
        "backward": backward_arguments(
            scalar, statistics, scalar, call, True, distill, _empty_like(call.cls), grad_dist
        ),
    }


def trace_cases() -> list[TraceCase]:
    """Both passes of every form with a row in one tile; the two main ones also in several tiles and with an edge."""
    sizes = [(form, 1000) for form in _FORMS] + [("hard mixed", 21841), ("soft dense", 21840), ("soft dense", 21841)]
    return [
        TraceCase(f"loss_{direction} {form} c{classes}", functools.partial(run, form, classes))
        for form, classes in sizes
        for direction, run in (("forward", _trace_forward), ("backward", _trace_backward))
    ]


def _trace_forward(form: str, classes: int) -> TracedCall:
    call = example(form, classes, torch.float16, rows=8)
    rows = torch.empty(2, 8)
    statistics = torch.empty(8, reference.STATISTICS)
    arguments, options = forward_arguments(call, None, *rows, statistics)
    kernels.forward_kernel[(8,)](*arguments, **options)
    return TracedCall(_tensors(call), {"base": rows[0], "distill": rows[1], "statistics": statistics})


def _trace_backward(form: str, classes: int) -> TracedCall:
    call = example(form, classes, torch.float16, rows=8)
    *_, statistics, count = reference.forward(call)
    grad = torch.ones(())
    gradients = backward(grad, statistics, count, call, True, call.dist is not None)
    read = backward_operands(call, True, call.teacher is not None)
    inputs = {f"{tensor.data_ptr()}": tensor for tensor in read.vectors if tensor is not None}  # one head is read once
    outputs = {f"gradient {i}": gradient for i, gradient in enumerate(gradients) if gradient is not None}
    return TracedCall(inputs | {"grad": grad, "statistics": statistics, "count": count}, outputs)


def _tensors(call: LossCall) -> dict[str, Tensor]:
    return {name: value for name, value in call._asdict().items() if isinstance(value, Tensor)}
