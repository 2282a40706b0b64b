"""sample_plan: the same in C++ and NumPy, a pure function of its arguments, distributed as timm's crops."""

import random

import numpy as np
import pytest
import torch
from augment_cases import POLICIES, needs_extension
from augment_distance import distance
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from deit_kernels.augment import ImageBatch, Policy, reference, sample_plan
from deit_kernels.augment.plan import OP, ROW
from deit_kernels.augment.policy import POLICY


def draw(policy: Policy, count: int, height: object, width: object, seed: int = 0) -> np.ndarray:
    sample = np.arange(count)
    return sample_plan(policy, seed=seed, epoch=0, sample=sample, copy=0, height=height, width=width).table


@needs_extension
@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_cpp_and_numpy_draw_the_same_rows(policy: Policy, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    counters = numbers.integers(0, 2**32, (3, 3000))
    sides = numbers.integers(1, [[9], [3000]], (2, 2, 3000)).reshape(2, -1)  # tiny and ordinary, mixed
    height, width = numbers.permuted(sides, axis=1)[:, :3000]
    epoch, sample, copy = counters
    plan = sample_plan(policy, seed=seed, epoch=epoch, sample=sample, copy=copy, height=height, width=width)
    keys = torch.from_numpy(np.stack([*counters, height, width], axis=1))
    numbers = torch.from_numpy(policy.numbers(seed).view(np.uint8))
    expected = reference.sample.sample_rows(keys, numbers)
    assert torch.equal(plan.rows, expected)


def test_a_plan_never_changes_between_versions() -> None:
    plan = sample_plan(Policy.deit(224), seed=7, epoch=[0, 0, 1], sample=[0, 1, 0], copy=0, height=375, width=500)
    assert plan.table["box"].tolist() == [[121, 67, 242, 317], [16, 118, 320, 330], [46, 122, 326, 352]]
    assert plan.table["flip"].tolist() == [1, 1, 0]
    ops = plan.table["ops"]
    assert ops["op"].tolist() == [[6, 8, 0, 0], [9, 0, 0, 0], [0, 0, 0, 0]]
    assert ops["arg"][:, :2].tolist() == [[32.0, 1.8462552922826057], [0.19448594728672175, 0.0], [0.0, 0.0]]
    assert plan.table["erased"].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [22, 119, 134, 41]]


def test_a_row_depends_on_nothing_but_its_own_numbers() -> None:
    everything = draw(Policy.deit(), 100, 375, 500)
    order = np.random.default_rng(0).permutation(100)[:37]
    some = sample_plan(Policy.deit(), seed=0, epoch=0, sample=order, copy=0, height=375, width=500).table
    assert (some == everything[order]).all()


def test_seed_epoch_sample_and_copy_each_change_the_crop() -> None:
    one = dict(seed=1, epoch=1, sample=1, copy=1)
    boxes = [sample_plan(Policy.deit(), **one, height=375, width=500).table["box"][0]]
    for name in one:
        boxes.append(sample_plan(Policy.deit(), **{**one, name: 2}, height=375, width=500).table["box"][0])
    assert len({tuple(box) for box in boxes}) == 5


def test_a_batch_may_cross_an_epoch() -> None:
    both = sample_plan(Policy.deit(), seed=0, epoch=[4, 5], sample=[9, 0], copy=0, height=90, width=80).table
    last = sample_plan(Policy.deit(), seed=0, epoch=4, sample=9, copy=0, height=90, width=80).table
    first = sample_plan(Policy.deit(), seed=0, epoch=5, sample=0, copy=0, height=90, width=80).table
    assert (both == np.concatenate([last, first])).all()


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (64, 64), (300, 40)])
def test_crops_are_distributed_as_those_of_timm(height: int, width: int) -> None:
    count = 20_000
    image = Image.new("RGB", (width, height))
    random.seed(0)
    get_params = RandomResizedCropAndInterpolation.get_params
    theirs = np.array([get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(count)], float)
    table = draw(Policy.deit(), count, height, width)
    ours = table["box"].astype(float)
    features = {
        "top": lambda box: box[:, 0] / np.maximum(height - box[:, 2], 1),
        "left": lambda box: box[:, 1] / np.maximum(width - box[:, 3], 1),
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 3] / box[:, 2],
        "centre": lambda box: box[:, 0] + box[:, 2] / 2 + box[:, 1] + box[:, 3] / 2,
    }
    far = {name: value for name, f in features.items() if (value := distance(f(ours), f(theirs))) > 0.0195}
    assert not far  # 1.95 sqrt(2 / count): a true null hypothesis is rejected once in a thousand
    assert abs(table["flip"].mean() - 0.5) < 0.0125


def test_crops_reach_both_edges_and_stay_inside() -> None:
    top, left, height, width = draw(Policy.deit(), 50_000, 8, 9)["box"].T
    assert top.min() == left.min() == 0
    assert (top + height).max() == 8
    assert (left + width).max() == 9
    assert height.min() >= 1
    assert width.min() >= 1


@pytest.mark.parametrize(
    ("height", "width", "box"), [(10, 1000, [0, 493, 10, 13]), (1000, 10, [493, 0, 13, 10]), (1, 1, [0, 0, 1, 1])]
)
def test_an_image_that_no_try_fits_gets_the_central_fallback(height: int, width: int, box: list[int]) -> None:
    policy = Policy(scale=(1.0, 1.0))
    assert draw(policy, 20, height, width)["box"].tolist() == [box] * 20


def test_the_tables_are_the_c_structs() -> None:
    assert [OP.fields[name][1] for name in OP.names] == [0, 2, 3, 4, 7, 8, 16]
    assert OP.itemsize == 64
    offsets = [0, 8, 12, 16, 32, 40, 48, 52, 56, 312, 328, 332, 336, 340, 344, 352, 356, 358]
    assert [ROW.fields[name][1] for name in ROW.names] == offsets
    assert ROW.itemsize == 360
    assert POLICY.itemsize == 1920


@needs_extension
def test_a_placed_plan_names_the_order_of_the_heaviest_ops() -> None:
    count = 300
    batch = ImageBatch.from_images([np.zeros((9, 9, 3), np.uint8)] * count)
    plan = sample_plan(Policy.deit(), seed=0, epoch=0, sample=range(count), copy=0, height=9, width=9)
    placed = plan.place(batch)
    order, turn = placed.table["order"], placed.table["turn"]
    assert sorted(order) == list(range(count)) and (turn[order] == np.arange(count)).all()
    heaviest, *_, lightest = placed.table["ops"]["op"][order]
    assert 4 in heaviest and not lightest.any()  # a rotation, and no op
    tables = batch.offset, batch.height, batch.width
    theirs = reference.resize.place_rows(plan.rows, *tables, batch.data.numel(), plan.policy.size)
    assert torch.equal(placed.rows, theirs)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": -1}, r"seed is an integer in \[0, 2\*\*64\)"),
        ({"seed": 2**64}, r"seed is an integer in \[0, 2\*\*64\)"),
        ({"epoch": -1}, "epoch lies in"),
        ({"sample": [0, 2**32]}, "sample lies in"),
        ({"copy": 0.5}, "copy is an integer"),
        ({"height": [5, 0]}, "height lies in"),
        ({"width": 2**24}, "width lies in"),
        ({"sample": [[1, 2], [3, 4]]}, r"broadcast to \(B,\)"),
        ({"sample": [1, 2, 3], "height": [1, 2]}, "broadcast"),
    ],
)
def test_what_sample_plan_refuses(change: dict[str, object], text: str) -> None:
    good = dict(seed=0, epoch=0, sample=[0, 1], copy=0, height=[5, 6], width=[7, 8])
    with pytest.raises(ValueError, match=text):
        sample_plan(Policy.deit(), **{**good, **change})


def test_an_image_too_long_for_the_evaluation_resize_is_refused() -> None:
    with pytest.raises(ValueError, match="longer side is below"):
        sample_plan(Policy.eval(), seed=0, epoch=0, sample=0, copy=0, height=1, width=2**24 - 1)


def test_an_empty_batch_has_an_empty_plan() -> None:
    plan = sample_plan(Policy.deit(), seed=0, epoch=0, sample=[], copy=0, height=[], width=[])
    assert plan.place(ImageBatch.from_images([])).rows.shape == (0, ROW.itemsize)
