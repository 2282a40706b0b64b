"""A fast forward pass of the teacher: it runs in every step and is most of a distilled step's arithmetic.

    engine = TeacherEngine(load_teacher(…), image_size=224, device=device, dtype=torch.bfloat16, compiled=True)
    engine(images)          # its labels of a batch
    engine.module(images)   # float32 logits, not compiled, for an evaluation

Batch norms are folded into the convolutions before them, and the change of normalisation into the first convolution
where that is exact; weights are cast once; for hard labels no probabilities are computed. On a GPU the faster memory
layout is measured at the start. Not yet measured on a GPU.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deit_kernels import TopK

from ..weights.build import Frozen

_TOLERANCE = 1e-3  # largest difference of logits that folding may make in float32, as a part of the largest logit
_FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


class TeacherEngine:
    """A teacher's labels, computed fast; the teacher, on the CPU and in float32, is copied.

    `top_k` is None for hard labels, 0 for logits, or K for the K most likely classes, at the temperature `tau`. On a
    GPU the faster memory layout is measured on `rows` images: as many as a call has.
    """

    def __init__(
        self, teacher: Frozen, *, image_size: int, device: torch.device, dtype: torch.dtype = torch.float32,
        compiled: bool = False, top_k: int | None = None, tau: float = 1.0, layout: str = "auto", rows: int = 8,
    ) -> None:  # fmt: skip
        self.module, folded = fold(teacher, image_size)  # images normalised for the student -> float32 logits
        self.module.cast(dtype).to(device)
        if layout == "auto":
            layout, reason = self._faster_layout(torch.zeros(rows, 3, image_size, image_size, device=device))
        else:
            reason = "--teacher-layout"
        self.module.to(memory_format=_FORMATS[layout])
        self.decisions = [(folded, ""), (str(dtype).removeprefix("torch."), "its weights, cast once"), (layout, reason)]
        self.layout = layout
        self._top_k, self._tau = top_k, tau
        # Dynamo may not trace all of a model that is not ours: it then runs in pieces, which TORCH_LOGS lists.
        self._compute: Callable = torch.compile(self._labels, dynamic=False) if compiled else self._labels

    def __call__(self, images: Tensor) -> Tensor | TopK:
        """Labels int64 (B,), logits (B, C) or a TopK of `images` (B, 3, S, S), which are normalised for the student."""
        with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
            labels = self._compute(images)
        if isinstance(labels, Tensor):
            return labels.clone()  # autograd refuses tensors of inference mode
        return TopK(labels[0].clone(), labels[1].clone(), self._tau)

    def _labels(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.module(images)
        if self._top_k is None:
            return logits.argmax(1)
        if self._top_k == 0:
            return logits
        probs, indices = (logits / self._tau).softmax(1).topk(min(self._top_k, logits.shape[1]))
        return indices, probs.half().float()  # rounded as in the label cache, so that both train the same bits

    def _faster_layout(self, images: Tensor) -> tuple[str, str]:
        if not any(isinstance(module, nn.Conv2d) for module in self.module.modules()):
            return "nchw", "it has no convolutions"
        if images.device.type == "cpu":  # not measured: a run would depend on what else the machine does
            return "channels_last", "ConvNets are faster this way on a CPU"
        try:
            milliseconds = {name: self._milliseconds(images, form) for name, form in _FORMATS.items()}
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
            return self._faster_layout(images[: len(images) // 2])  # as the step will halve what it takes at once
        measured = ", ".join(f"{name} {value:.2f} ms" for name, value in milliseconds.items())
        return min(milliseconds, key=lambda name: milliseconds[name]), f"measured on {len(images)} images: {measured}"

    @torch.inference_mode()
    def _milliseconds(self, images: Tensor, form: torch.memory_format) -> float:
        self.module.to(memory_format=form)
        images = images.contiguous(memory_format=form)
        times = []
        for _ in range(6):
            torch.accelerator.synchronize(images.device)
            began = time.perf_counter()
            self.module(images)
            torch.accelerator.synchronize(images.device)
            times.append((time.perf_counter() - began) * 1e3)
        return min(times[1:])


@torch.no_grad()
def fold(teacher: Frozen, image_size: int) -> tuple[Frozen, str]:
    """A copy with fewer operations and the same logits, and what was done to it in words.

    If the logits on random images are not the same, the copy is the teacher as it is.
    """
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    folded = copy.deepcopy(teacher)
    pairs, first = _trace(folded.model, images)
    for convolution, norm in pairs:
        _fold_norm(folded.model, convolution, norm)
    normalisation = _fold_normalisation(folded, first)
    expected, got = teacher(images), folded(images)
    if not (expected - got).abs().max() <= _TOLERANCE * expected.abs().max():
        return copy.deepcopy(teacher), "as it is: with its batch norms folded it would give other labels"
    return folded, f"{len(pairs)} batch norms folded into convolutions, {normalisation}"


class _Readers(TorchDispatchMode):
    """Counts the operations that read each tensor, by id."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self._alive: list[Any] = []  # a freed tensor's id could be used again

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self._alive += [args, result]
        self.count.update({id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)})
        return result


def _trace(model: nn.Module, images: Tensor) -> tuple[list[tuple[str, str]], str | None]:
    """The (convolution, batch norm) pairs by name in which nothing else reads the convolution's output, and the
    convolution that alone reads the images, if there is one."""
    calls: list[tuple[str, nn.Module, Any, Any]] = []
    hooks = [
        module.register_forward_hook(lambda module, args, out, name=name: calls.append((name, module, args[0], out)))
        for name, module in model.named_modules()
        if type(module) in (nn.Conv2d, Conv2dSame, nn.BatchNorm2d, BatchNormAct2d)
    ]
    with _Readers() as readers:
        model(images)
    for hook in hooks:
        hook.remove()
    times = Counter(name for name, *_ in calls)
    once = [call for call in calls if times[call[0]] == 1]
    convolutions = {id(out): name for name, module, _, out in once if isinstance(module, nn.Conv2d)}
    pairs = [
        (convolutions[id(given)], name)
        for name, module, given, _ in once
        if not isinstance(module, nn.Conv2d) and id(given) in convolutions and readers.count[id(given)] == 1
    ]
    of_images = [name for name, module, given, _ in once if isinstance(module, nn.Conv2d) and given is images]
    alone = len(of_images) == 1 and readers.count[id(images)] == 1
    return pairs, of_images[0] if alone else None


def _fold_norm(model: nn.Module, convolution_name: str, norm_name: str) -> None:
    convolution, norm = model.get_submodule(convolution_name), model.get_submodule(norm_name)
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    after = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    model.set_submodule(convolution_name, fuse_conv_bn_eval(convolution.double(), norm.double()).float())
    model.set_submodule(norm_name, after)


def _fold_normalisation(teacher: Frozen, first: str | None) -> str:
    """Fold the change of normalisation into the convolution `first` if that is exact; returns what was done."""
    assert teacher.scale is not None and teacher.shift is not None
    scale, shift = teacher.scale.double().view(1, 3, 1, 1), teacher.shift.double().view(1, 3, 1, 1)
    if not shift.any() and (scale == 1).all():
        teacher.scale = teacher.shift = None
        return "the student's normalisation"
    convolution = None if first is None else teacher.model.get_submodule(first)
    if not isinstance(convolution, nn.Conv2d) or convolution.groups != 1 or convolution.padding_mode != "zeros":
        return "its own normalisation before it"
    padded = type(convolution) is not nn.Conv2d or convolution.padding not in (0, (0, 0), "valid")
    if shift.any() and padded:  # a border of zeros is not shifted with the image
        return "its own normalisation before it (its first convolution pads)"
    weight = convolution.weight.double()
    if shift.any():
        bias = (weight * shift).sum((1, 2, 3))
        convolution.bias = _parameter(bias if convolution.bias is None else convolution.bias.double() + bias)
    convolution.weight = _parameter(weight * scale)
    teacher.scale = teacher.shift = None
    return "its own normalisation folded into its first convolution"


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.float(), requires_grad=False)
