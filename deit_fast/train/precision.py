"""The precision of a training's forward passes: which one a run takes, and the context that computes in it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from ..config import Precision
from ..ranks.group import Ranks, has_bf16
from ..run.report import Reporter

_NAMES = {
    "bf16": "bf16 autocast, fp32 weights",
    "bf16-residual": "bf16 autocast, also of the sums between a deit_ model's blocks, fp32 weights",
    "fp16": "fp16 autocast, fp32 weights, scaled loss",
}
_DTYPES = {"bf16": torch.bfloat16, "bf16-residual": torch.bfloat16, "fp16": torch.float16}


def precision(asked: Precision, ranks: Ranks, begun: Precision | None, reporter: Reporter) -> Precision:
    """The precision of forward passes; "auto" is that of the checkpoint, `begun`, else what rank 0's device has.

    Raises:
        ValueError: fp16 on a CPU.
    """
    chosen, reason = asked, "--precision"
    if chosen == "fp16" and ranks.device.type != "cuda":
        raise ValueError("--precision fp16 needs a CUDA GPU, this is a CPU: type --precision bf16 or --precision fp32")
    if chosen == "auto" and begun:
        chosen, reason = begun, "this run began with it"
    elif chosen == "auto":
        why = ranks.on_main(lambda: _why_bf16(ranks.device))
        chosen = "bf16" if why else "fp32"
        reason = why or "bf16 would be no faster here: it needs a GPU that has it, or a processor with AMX tiles"
    reporter.decide("precision", _NAMES.get(chosen, chosen), reason)
    return chosen


def _why_bf16(device: torch.device) -> str | None:
    """Why --precision auto takes bfloat16 there; None where it does not.

    The device is asked, nothing is timed: a run's bits may not depend on the machine's load. AVX-512 BF16 without AMX
    tiles gains too little for its rounding (`bench_train` has both precisions).
    """
    if has_bf16(device):
        return "this GPU has it"
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # older torch cannot be asked: float32
    tiles = device.type == "cpu" and capabilities and capabilities().get("amx_bf16")
    return "this processor has AMX tiles" if tiles else None


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """The context of a forward pass."""
    return torch.autocast(device.type, _DTYPES[precision]) if precision in _DTYPES else nullcontext()
