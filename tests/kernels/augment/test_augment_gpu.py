"""On a card: the CUDA ops equal the CPU ops bit for bit, on any stream and inside a graph."""

import numpy as np
import pytest
import torch
from augment_cases import POLICIES, SIZES, noise_batch

from deit_kernels.augment import AugmentPlan, ImageBatch, Policy, apply, apply_out, resized_crop, sample_plan

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def plan_for(batch: ImageBatch, policy: Policy) -> AugmentPlan:
    height, width = batch.height.numpy(), batch.width.numpy()
    return sample_plan(policy, seed=0, epoch=0, sample=np.arange(len(height)), copy=0, height=height, width=width)


@pytest.mark.parametrize("policy", [*POLICIES, Policy.deit(224), Policy.deit(384), Policy.deit(1024)], ids=str)
def test_every_type_and_layout_equals_the_cpu(policy: Policy) -> None:
    batch = noise_batch([*SIZES, (375, 500)])
    plan = plan_for(batch, policy)
    for dtype in DTYPES:
        for layout in ("nchw", "channels_last", "patches"):
            asked = {"dtype": dtype, "layout": layout, "patch": policy.size}
            on_card = apply(batch.to("cuda"), plan, **asked)
            on_cpu = apply(batch, plan, **asked)
            assert on_card.stride() == on_cpu.stride()
            assert torch.equal(on_card.cpu(), on_cpu)


def test_a_crop_of_a_large_image_equals_the_cpu() -> None:
    batch, box = noise_batch([(3000, 4000), (40, 4000)]), torch.tensor([[0, 0, 3000, 4000], [1, 2, 30, 3000]])
    for size in (1, 224):
        assert torch.equal(resized_crop(batch.to("cuda"), box, size).cpu(), resized_crop(batch, box, size))


def test_an_unplaced_row_on_the_card_gives_nan() -> None:
    batch = noise_batch([(20, 30)])
    images = apply(batch.to("cuda"), plan_for(batch, Policy.deit(32)).to("cuda"))
    assert images.isnan().all()


def test_runs_on_the_current_stream_and_replays_in_a_graph() -> None:
    first, second = noise_batch(SIZES, seed=1), noise_batch(SIZES, seed=2)
    plan = plan_for(first, Policy.deit(32))
    images, rows = first.to("cuda"), plan.place(first).to("cuda")
    out = torch.full((len(SIZES), 3, 32, 32), float("nan"), device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        apply_out(images, rows, out=out)
    stream.synchronize()
    assert torch.equal(out.cpu(), apply(first, plan))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        apply_out(images, rows, out=out)
    images.data.copy_(second.data)
    graph.replay()
    assert torch.equal(out.cpu(), apply(second, plan))


def test_mixed_devices_are_refused() -> None:
    batch = noise_batch([(20, 30)])
    plan = plan_for(batch, Policy.deit(32))
    with pytest.raises(ValueError, match="move one with"):
        apply(batch, plan.place(batch).to("cuda"))
    with pytest.raises(ValueError, match="placed in host memory"):
        plan.to("cuda").place(batch)
    with pytest.raises(ValueError, match="out is one of"):
        apply_out(batch.to("cuda"), plan, out=torch.empty(1, 3, 32, 32))
