"""The augmentation ops: schemas, fakes, which implementation runs, and the public functions over them.

    images = apply(batch, plan, dtype=torch.bfloat16, layout="patches")

CPU tensors run the C++ extension, or with one warning the NumPy reference where it is not built. CUDA tensors run the
CUDA extension. `torch.compile` keeps a full graph through every function here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _extension
from . import reference
from .mix import MIX, MixPlan
from .plan import MAX_SIDE, ROW, AugmentPlan, ImageBatch
from .policy import FILTERS, MAX_OUTPUT, Policy

Layout = Literal["nchw", "channels_last", "patches"]

LAYOUTS = ("nchw", "channels_last", "patches")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_AFTER_FILTER = (ROW.itemsize - dict(ROW.fields or {})["flip"][1]) // 4  # int32 words of a row behind its filter


def _output(rows: Tensor, size: int, dtype: torch.dtype, device: torch.device, layout: str, patch: int) -> Tensor:
    count = rows.shape[0]
    if layout == "patches":
        return torch.empty(count, (size // patch) ** 2, 3 * patch * patch, dtype=dtype, device=device)
    order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return torch.empty(count, 3, size, size, dtype=dtype, device=device, memory_format=order)


def _apply_reference(
    data: Tensor, rows: Tensor, mix: Tensor | None, size: int, mean: list[float], std: list[float],
    dtype: torch.dtype, layout: str, patch: int,
) -> Tensor:  # fmt: skip
    images = reference.resize.resize_rows(data, rows, size)
    ops = np.ascontiguousarray(rows.numpy().view(ROW)[:, 0]["ops"])
    for layer in range(ops.shape[1]):
        calls = torch.from_numpy(np.ascontiguousarray(ops[:, layer, None]).view(np.uint8))
        images = reference.ops.run_ops(images, calls)
    return reference.finish.finish(images, rows, mix, mean, std, dtype, layout, patch)


def _apply_out_reference(*arguments: Any) -> None:
    data, rows, mix, size, mean, std, layout, patch, out = arguments
    out.copy_(_apply_reference(data, rows, mix, size, mean, std, out.dtype, layout, patch))


class _Op(NamedTuple):
    schema: str
    reference: Callable[..., object]
    fake: Callable[..., object]
    on_cuda: bool = False


_OPS = {
    "_augment_sample_plan": _Op(
        "(Tensor keys, Tensor policy) -> Tensor",
        reference.sample.sample_rows,
        lambda keys, policy: keys.new_empty(keys.shape[0], ROW.itemsize, dtype=torch.uint8),
    ),
    "_augment_sample_mix": _Op(
        "(Tensor numbers, SymInt count) -> Tensor",
        reference.mix.sample_rows,
        lambda numbers, count: numbers.new_empty(count, MIX.itemsize),
    ),
    "_augment_place": _Op(
        "(Tensor rows, Tensor offset, Tensor height, Tensor width, SymInt data_bytes, int size) -> Tensor",
        reference.resize.place_rows,
        lambda rows, *_: torch.empty_like(rows),
    ),
    "_augment_check_mix": _Op(
        "(Tensor mix, int size) -> Tensor", reference.finish.checked_mix, lambda mix, size: torch.empty_like(mix)
    ),
    "_augment_op": _Op(
        "(Tensor images, Tensor calls) -> Tensor",
        reference.ops.run_ops,
        lambda images, calls: torch.empty_like(images),
        on_cuda=True,
    ),
    "_augment_resize": _Op(
        "(Tensor data, Tensor rows, int size) -> Tensor",
        reference.resize.resize_rows,
        lambda data, rows, size: data.new_empty(rows.shape[0], size, size, 3),
        on_cuda=True,
    ),
    "_augment_apply": _Op(
        "(Tensor data, Tensor rows, Tensor? mix, int size, float[] mean, float[] std, ScalarType dtype, "
        "str layout, int patch) -> Tensor",
        _apply_reference,
        lambda data, rows, mix, size, mean, std, dtype, *form: _output(rows, size, dtype, data.device, *form),
        on_cuda=True,
    ),
    "_augment_apply_out": _Op(
        "(Tensor data, Tensor rows, Tensor? mix, int size, float[] mean, float[] std, str layout, "
        "int patch, Tensor(a!) out) -> ()",
        _apply_out_reference,
        lambda *_: None,
        on_cuda=True,
    ),
}


def _no_cuda(*arguments: Any) -> None:
    raise RuntimeError(f"augmenting on CUDA: {_extension.cuda_missing}. Until then call apply on CPU tensors")


if _extension.cpu_missing:
    warnings.warn(
        f"deit_kernels augments in NumPy, exact but many times slower than the C++ extension: {_extension.cpu_missing}",
        stacklevel=2,
    )
for _name, _op in _OPS.items():
    _name = f"deit_kernels::{_name}"
    torch.library.define(_name, _op.schema)
    torch.library.register_fake(_name, _op.fake)
    if _extension.cpu_missing:
        torch.library.impl(_name, "CPU", _op.reference)
    if _op.on_cuda and _extension.cuda_missing:
        torch.library.impl(_name, "CUDA", _no_cuda)


def _placed_rows(batch: ImageBatch, plan: AugmentPlan) -> Tensor:
    """The rows on the device of the pixels; those in host memory are checked first."""
    data, rows = batch.data, plan.rows
    if data.dtype != torch.uint8 or data.dim() != 1 or not data.is_contiguous():
        raise ValueError(f"batch.data is contiguous uint8 (bytes,), got {data.dtype} {tuple(data.shape)}")
    for name, table, dtype in (
        ("offset", batch.offset, torch.int64),
        ("height", batch.height, torch.int32),
        ("width", batch.width, torch.int32),
    ):
        if table.dtype != dtype or table.shape != rows.shape[:1] or table.device.type != "cpu":
            raise ValueError(
                f"batch.{name} is {dtype} ({rows.shape[0]},) in host memory, one entry for each row of the plan, "
                f"got {table.dtype} {tuple(table.shape)} on {table.device}"
            )
    if rows.device.type == "cpu":
        rows = plan.place(batch).rows
        return rows if data.device.type == "cpu" else rows.to(data.device, non_blocking=True)
    if rows.device != data.device:
        raise ValueError(f"the plan is on {rows.device}, the pixels are on {data.device}: move one with .to(device)")
    return rows


def _mix_rows(mix: MixPlan | None, rows: Tensor, size: int) -> Tensor | None:
    """The rows of mix on the device of the plan's; those in host memory are checked first."""
    if mix is None:
        return None
    table = mix.rows
    if table.dtype != torch.uint8 or table.shape != (rows.shape[0], MIX.itemsize):
        raise ValueError(
            f"mix has one row for each of the {rows.shape[0]} rows of the plan, uint8 ({rows.shape[0]}, "
            f"{MIX.itemsize}), got {table.dtype} {tuple(table.shape)}"
        )
    if table.device != rows.device and table.device.type != "cpu":
        raise ValueError(f"the mix is on {table.device}, the pixels are on {rows.device}: move one with .to(device)")
    if table.device.type == "cpu":
        table = torch.ops.deit_kernels._augment_check_mix(table, size)
    return table.to(rows.device, non_blocking=True)


def _check_layout(size: int, layout: str, patch: int) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"layout is one of {LAYOUTS}, got {layout!r}")
    if layout == "patches" and (patch < 1 or size % patch):
        raise ValueError(f"patch divides the output's side of {size}, got {patch}")


def apply(
    batch: ImageBatch,
    plan: AugmentPlan,
    mix: MixPlan | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    layout: Layout = "nchw",
    patch: int = 16,
) -> Tensor:
    """Execute a plan: crop, resize, flip, up to four ops, normalise, erase, mix.

    Args:
        batch: B ragged uint8 images; on the device that does the work.
        plan: B rows, from `sample_plan`. In host memory it is placed and checked here; on a device it must have been
            placed (`AugmentPlan.place`) and is not checked: a row that would read outside its image gives NaN.
        mix: B rows, from `sample_mix`; None mixes nothing. Checked or not as the plan is.
        dtype: torch.float32, float16 or bfloat16; the arithmetic is float32.
        layout: "nchw"; "channels_last", the same tensor in channels_last memory; or "patches", ready for the patch
            embedding's matmul: patches row by row, inside a patch channel, row, column, as in a Conv2d weight.
        patch: side of a patch in pixels, for "patches".

    Returns:
        (B, 3, S, S) with S = plan.policy.size, or (B, (S / patch)², 3 · patch²) for "patches".

    Raises:
        ValueError: a wrong type, shape or device, a plan drawn for other images, an image outside the buffer.

    Source: pixel for pixel timm 1.0's and torchvision 0.29's transforms on Pillow 12: uint8 between stages, then
    (x / 255 − mean) / std in float32, timm's RandomErasing and Mixup in float32, one rounding to dtype.
    """
    policy = plan.policy
    _check_layout(policy.size, layout, patch)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is one of {DTYPES}, got {dtype}")
    rows = _placed_rows(batch, plan)
    return torch.ops.deit_kernels._augment_apply(
        batch.data, rows, _mix_rows(mix, rows, policy.size), policy.size, policy.mean, policy.std, dtype, layout, patch
    )


def apply_out(
    batch: ImageBatch,
    plan: AugmentPlan,
    mix: MixPlan | None = None,
    *,
    out: Tensor,
    layout: Layout = "nchw",
    patch: int = 16,
) -> None:
    """`apply` into the caller's buffer `out`, of the shape, memory order and one of the types that `apply` returns.

    Raises:
        ValueError: as `apply`, or `out` has another shape, memory order, type or device.
    """
    policy = plan.policy
    _check_layout(policy.size, layout, patch)
    rows = _placed_rows(batch, plan)
    like = _output(rows, policy.size, out.dtype, torch.device("meta"), layout, patch)
    if out.dtype not in DTYPES or out.shape != like.shape or out.stride() != like.stride() or out.device != rows.device:
        raise ValueError(
            f"out is one of {DTYPES} {tuple(like.shape)} with strides {like.stride()} on {rows.device}, "
            f"got {out.dtype} {tuple(out.shape)} with strides {out.stride()} on {out.device}"
        )
    torch.ops.deit_kernels._augment_apply_out(
        batch.data, rows, _mix_rows(mix, rows, policy.size), policy.size, policy.mean, policy.std, layout, patch, out
    )


def resized_crop(
    batch: ImageBatch, box: Tensor, size: int, interpolation: Literal["bicubic", "bilinear"] = "bicubic"
) -> Tensor:
    """Crop a box of each image and resize it to size × size, equal to Pillow's `image.crop(...).resize(...)`.

    Args:
        batch: B ragged images.
        box: int32 or int64 (B, 4) in host memory: top, left, height, width in pixels.
        size: side of the output, 1 to 1024.
        interpolation: "bicubic" or "bilinear", antialiased.

    Returns:
        uint8 (B, size, size, 3).

    Raises:
        ValueError: an argument outside its range, a box that is empty or leaves its image.
    """
    if not 1 <= size <= MAX_OUTPUT:
        raise ValueError(f"size is a side from 1 to {MAX_OUTPUT} pixels, got {size}")
    if interpolation not in FILTERS:
        raise ValueError(f"interpolation is one of {FILTERS}, got {interpolation!r}")
    shape, kinds = (batch.height.shape[0], 4), (torch.int32, torch.int64)
    if box.shape != shape or box.dtype not in kinds or box.device.type != "cpu":
        got = f"{box.dtype} {tuple(box.shape)} on {box.device}"
        raise ValueError(f"box is int32 or int64 {shape} in host memory, got {got}")

    def column(value: int, count: int = 1) -> Tensor:
        return torch.full((box.shape[0], count), value, dtype=torch.int32)

    inside = box.clamp(-1, MAX_SIDE + 1).to(torch.int32)  # an int64 far outside must not wrap to a valid int32
    tables = [batch.height[:, None], batch.width[:, None], inside]
    filter = column(FILTERS.index(interpolation))
    words = torch.cat([column(0, 2), *tables, column(size, 2), column(0, 2), filter, column(0, _AFTER_FILTER)], dim=1)
    rows = _placed_rows(batch, AugmentPlan(words.view(torch.uint8), Policy(size=size)))
    return torch.ops.deit_kernels._augment_resize(batch.data, rows, size)
