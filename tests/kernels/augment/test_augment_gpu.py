"""On a card: the CUDA ops equal the CPU ops bit for bit, on any stream and inside a graph."""

from dataclasses import replace

import pytest
import torch
from augment_cases import POLICIES, SIZES, noise_batch, plan_for
from test_augment_ops import AFFINE, ARGUMENTS, IMAGES

from deit_kernels.augment import OPS, Mix, Policy, apply, apply_op, apply_out, resized_crop, sample_mix

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("policy", [*POLICIES, Policy.deit(224), Policy.deit(384), Policy.deit(1024)], ids=str)
def test_every_type_and_layout_equals_the_cpu(policy: Policy) -> None:
    batch = noise_batch([*SIZES[1:], (375, 500)])
    plan = plan_for(batch, policy)
    for dtype in DTYPES:
        for layout in ("nchw", "channels_last", "patches"):
            asked = {"dtype": dtype, "layout": layout, "patch": policy.size}
            for mix in (None, sample_mix(replace(policy, mix=Mix()), seed=0, step=1, start=0, count=8, group=2)):
                on_card = apply(batch.to("cuda"), plan, mix, **asked)
                on_cpu = apply(batch, plan, mix, **asked)
                assert on_card.stride() == on_cpu.stride()
                assert torch.equal(on_card.cpu(), on_cpu)


def test_a_crop_of_a_large_image_equals_the_cpu() -> None:
    batch, box = noise_batch([(3000, 4000), (40, 4000)]), torch.tensor([[0, 0, 3000, 4000], [1, 2, 30, 3000]])
    for size in (1, 224):
        assert torch.equal(resized_crop(batch.to("cuda"), box, size).cpu(), resized_crop(batch, box, size))


@pytest.mark.parametrize("name", OPS[1:])
@pytest.mark.parametrize("kind", IMAGES)
def test_every_op_equals_the_cpu(kind: str, name: str) -> None:
    images = torch.from_numpy(IMAGES[kind]())[None].contiguous()
    for fast in (False, True) if name in AFFINE else (False,):
        for interpolation in ("bicubic", "bilinear"):
            for arg in ARGUMENTS[name]:
                on_card = apply_op(images.cuda(), name, arg, interpolation=interpolation, fast=fast)
                assert torch.equal(on_card.cpu(), apply_op(images, name, arg, interpolation=interpolation, fast=fast))


@pytest.mark.parametrize("policy", [Policy.deit(32), Policy.deit3(32)], ids=["deit", "deit3"])
def test_a_batch_is_three_launches_whatever_its_ops(policy: Policy) -> None:
    batch = noise_batch([(60, 80)] * 64).to("cuda")
    rows = plan_for(batch, policy).place(batch).to("cuda")
    mix = sample_mix(policy, seed=0, step=0, start=0, count=64, group=8).to("cuda")
    out = apply(batch, rows, mix)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        apply_out(batch, rows, mix, out=out)
        torch.cuda.synchronize()
    kernels = [event.name for event in profile.events() if "_kernel" in event.name]
    assert len(kernels) == 3, kernels


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
