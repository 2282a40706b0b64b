"""What Inductor generates for a DeiT-S of two blocks on an H100 that is not there: `python inductor_code.py` prints, as
JSON, the bytes that the kernels of each pass load and store by Inductor's own count, by a kernel's name.

A program and not a test, since torch.cuda is replaced before Inductor is imported. The graphs are traced with fake CPU
tensors, because autograd asks a CUDA tensor's device for its stream, then moved to fake CUDA tensors and lowered.
Nothing that Inductor generates is compiled or run.
"""

import contextlib
import dataclasses
import json
import re
import sys
import types
from collections import Counter
from unittest import mock

import torch
from torch._dynamo.device_interface import CudaInterface
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

H100 = types.SimpleNamespace(
    name="H100", major=9, minor=0, multi_processor_count=132, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, warp_size=32, total_memory=80 << 30,
    shared_memory_per_block_optin=232448, shared_memory_per_block=49152, L2_cache_size=50 << 20, gcnArchName="",
)  # fmt: skip
DEPTH, BATCH = 2, 256


class NoCard:
    """The part of Triton's driver that Inductor asks."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


def pretend() -> None:
    driver._active = NoCard()
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": H100,
        "get_device_capability": (9, 0), "is_bf16_supported": True, "synchronize": None, "_lazy_init": None,
        "_exchange_device": 0, "_maybe_exchange_device": 0, "get_compute_capability": "90", "is_triton_capable": True,
        "raise_if_triton_unavailable": None, "get_rng_state": torch.empty(0), "set_rng_state": None,
    }  # fmt: skip
    for name, answer in answers.items():
        for owner in (torch.cuda, CudaInterface):
            if hasattr(owner, name):
                setattr(owner, name, staticmethod(lambda *_, answer=answer, **__: answer))
    CudaInterface.Worker.get_device_properties = staticmethod(lambda *_: H100)
    CudaInterface.Worker.current_device = staticmethod(lambda: 0)


class Generated(Exception):
    """Carries the code out of Inductor before it is compiled."""


def generated(graph: torch.fx.GraphModule, inputs: list, backward: bool) -> str:
    from torch._inductor import compile_fx
    from torch._inductor.fx_passes import reinplace
    from torch._inductor.graph import GraphLowering

    found = []

    def stop(lowering: GraphLowering) -> None:
        found.append(lowering.codegen()[0].value)
        raise Generated

    with (
        mock.patch.object(GraphLowering, "compile_to_module", stop),
        mock.patch.object(reinplace, "_inplace_generalized_scatter", lambda inp, *_: inp),  # copies to see if it can
        contextlib.suppress(Exception),
        torch.no_grad(),
    ):
        compile_fx.compile_fx_inner(graph, inputs, is_backward=backward)
    return found[0]


def moved_to_cuda(graph: torch.fx.GraphModule, inputs: list, mode: torch._subclasses.FakeTensorMode) -> list:
    """The inputs there, after every node's value was made anew."""
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    device = torch.device("cuda", 0)
    for node in graph.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": device}
    graph.recompile()
    there = [torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device=device) for each in inputs]
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*there)
    return there


def bytes_of(code: str) -> Counter[str]:
    """The bytes of each Triton kernel, all its calls together."""
    sizes = dict(re.findall(r"'kernel_name': '(\w+)'.*?'kernel_num_gb': ([\d.e-]+)", code))
    return sum(
        (Counter({name: round(float(sizes[name]) * 1e9)}) for name in re.findall(r"(\w+)\.run\(", code)), Counter()
    )


def main() -> None:
    pretend()
    import torch._inductor.config as config
    from torch._functorch.aot_autograd import aot_function
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses import FakeTensorMode

    import deit_kernels.short_attention.op as op
    from deit_fast.model import CONFIGS, VisionTransformer

    op.attention_unsupported_reasons = op.kernel_unavailable_reasons = lambda *_, **__: ()
    config.compile_threads, config.fx_graph_cache, config.profile_bandwidth = 1, False, True
    with torch.device("meta"):
        sizes = dataclasses.replace(CONFIGS["deit_small_distilled_patch16_224"], depth=DEPTH)
        model = VisionTransformer(sizes)
    names = [name for name, _ in model.named_parameters()]
    graphs: list[tuple[torch.fx.GraphModule, list]] = []

    def forward(images: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (images,))

    def keep(graph: torch.fx.GraphModule, inputs: list):
        graphs.append((graph, inputs))
        return graph.forward

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model.to_empty(device="cpu")
        traced = aot_function(
            forward, keep, keep, min_cut_rematerialization_partition, decompositions=select_decomp_table()
        )
        cls_logits, dist_logits = traced(torch.empty(BATCH, 3, 224, 224), *model.parameters())
        (cls_logits.float().sum() + dist_logits.float().sum()).backward()
        found = {}
        for (graph, inputs), name in zip(graphs, ("forward", "backward"), strict=True):
            found[name] = bytes_of(generated(graph, moved_to_cuda(graph, inputs, mode), name == "backward"))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
