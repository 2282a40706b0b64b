"""Mixup and CutMix: drawn as timm draws them, by group and position alone, and applied with timm's arithmetic."""

import numpy as np
import pytest
import torch
from augment_cases import SIZES, noise_batch, plan_for
from augment_distance import distance
from timm.data.mixup import Mixup, cutmix_bbox_and_lam, mixup_target

from deit_kernels import MixedTarget, cross_entropy
from deit_kernels.augment import (
    AugmentPlan,
    ImageBatch,
    Mix,
    MixPlan,
    Policy,
    apply,
    apply_out,
    reference,
    sample_mix,
)
from deit_kernels.augment.mix import MIX, MIX_NUMBERS
from deit_kernels.augment.reference.mix import cut_boxes, sample_rows

POLICY = Policy.deit(32)


def draw(mix: Mix, groups: int, size: int = 224, seed: int = 0) -> np.ndarray:
    policy = Policy(size=size, mix=mix)
    return sample_mix(policy, seed=seed, step=5, start=0, count=2 * groups, group=2).table[::2]


def mixed_batch(step: int, group: int = 4, policy: Policy = POLICY) -> tuple[ImageBatch, AugmentPlan, MixPlan]:
    batch = noise_batch(SIZES)
    mix = sample_mix(policy, seed=3, step=step, start=0, count=len(SIZES), group=group)
    return batch, plan_for(batch, policy), mix


def test_every_kind_of_group_is_mixed_as_timm_mixes() -> None:
    kinds = set()
    for step in range(8):
        batch, plan, mix = mixed_batch(step)
        plain, ours = apply(batch, plan), apply(batch, plan, mix)
        for index, row in enumerate(mix.table):
            partner, lam = plain[row["partner"]], float(row["lam"])
            expected = plain[index].clone()
            if row["mode"] == 1:  # Mixup._mix_batch
                expected.mul_(lam).add_(partner * (1.0 - lam))
            if row["mode"] == 2:
                top, left, height, width = row["box"].tolist()
                window = (slice(None), slice(top, top + height), slice(left, left + width))
                expected[window] = partner[window]
                assert lam == 1.0 - height * width / 32**2
            assert torch.equal(ours[index], expected)
            kinds.add(int(row["mode"]))
    assert kinds == {1, 2}


def test_partners_need_not_be_each_others() -> None:
    """Cycles, one-way partners, a row with itself, and rows that mix nothing but name a partner."""
    batch = noise_batch(SIZES)
    plan, count, random = plan_for(batch, POLICY), len(SIZES), np.random.default_rng(0)
    plain = apply(batch, plan)
    for _ in range(6):
        table = np.zeros(count, MIX)
        table["partner"], table["mode"] = random.integers(0, count, count), random.integers(0, 2, count)
        table["lam"] = random.random(count)
        partner = torch.from_numpy(table["partner"].astype(np.int64))
        rows = torch.from_numpy(table.view(np.uint8).reshape(count, MIX.itemsize))
        ours = apply(batch, plan, MixPlan(rows, partner, torch.from_numpy(table["lam"].astype(np.float32))))
        for index, row in enumerate(table):
            lam, expected = float(row["lam"]), plain[index].clone()
            if row["mode"] == 1:
                expected.mul_(lam).add_(plain[row["partner"]] * (1.0 - lam))
            assert torch.equal(ours[index], expected)


def test_the_target_is_timms() -> None:
    _, _, mix = mixed_batch(1)
    labels = torch.arange(len(SIZES))
    target = mix.target(labels)
    assert isinstance(target, MixedTarget)
    assert torch.equal(target.partner_labels, labels[mix.partner_row])
    logits = torch.randn(len(SIZES), 10)
    for index, row in enumerate(mix.table):
        pair = torch.stack([labels[index], labels[row["partner"]]])
        dense = mixup_target(pair, 10, float(row["lam"]), smoothing=0.1)[:1]
        ours = cross_entropy(
            logits[index : index + 1],
            MixedTarget(*(field[index : index + 1] for field in target)),
            label_smoothing=0.1,
        )
        torch.testing.assert_close(ours, -(dense * logits[index : index + 1].log_softmax(-1)).sum())


@pytest.mark.parametrize("group", [2, 4, 8])
def test_partners_are_half_a_group_away(group: int) -> None:
    mix = sample_mix(POLICY, seed=0, step=0, start=0, count=32, group=group)
    row = np.arange(32)
    assert (mix.table["partner"] == row // group * group + (row % group + group // 2) % group).all()
    for name in ("mode", "lam", "box"):
        by_group = mix.table[name].reshape(32 // group, group, -1)
        assert (by_group == by_group[:, :1]).all()


def test_a_part_of_the_global_batch_has_its_part_of_the_plan() -> None:
    whole = sample_mix(POLICY, seed=9, step=2**40, start=0, count=96, group=8)
    for start, count in [(0, 32), (32, 64), (88, 8)]:
        part = sample_mix(POLICY, seed=9, step=2**40, start=start, count=count, group=8)
        expected = whole.table[start : start + count].copy()
        expected["partner"] -= start
        assert (part.table == expected).all()


def test_seed_step_and_group_each_change_the_draw() -> None:
    lam = [
        sample_mix(POLICY, seed=seed, step=step, start=start, count=2, group=2).table["lam"][0]
        for seed, step, start in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 2**32, 0), (0, 0, 2)]
    ]
    assert len(set(lam)) == 5


@pytest.mark.parametrize(
    "mix",
    [
        Mix(),
        Mix(0.01, 0.0),
        Mix(0.0, 100.0),
        Mix(0.2, 0.3, probability=0.6, switch_probability=0.9, box_rounding="timm"),
    ],
)
@pytest.mark.parametrize(("size", "group"), [(224, 2), (33, 6), (1, 4), (1024, 8)])
def test_the_extension_draws_what_numpy_draws(mix: Mix, size: int, group: int) -> None:
    for seed, step, start in [(0, 0, 0), (2**64 - 1, 2**64 - 1, 5 * group), (12345678901, 2**33 + 7, 10**6 * group)]:
        alphas = mix.mixup_alpha, mix.cutmix_alpha, mix.probability, mix.switch_probability
        record = (seed, step, start, group, *alphas, size, mix.box_rounding == "timm")
        numbers = torch.from_numpy(np.array([record], MIX_NUMBERS).view(np.uint8))
        policy = Policy(size=size, mix=mix)
        ours = sample_mix(policy, seed=seed, step=step, start=start, count=300 * group, group=group)
        assert (ours.table == sample_rows(numbers, 300 * group).numpy().view(MIX)[:, 0]).all()


def test_numbers_out_of_range_are_refused_before_a_draw() -> None:
    record = np.array([(0, 0, 0, 2, 0.8, 1.0, 1.0, 0.5, 32, 0)], MIX_NUMBERS)
    for name, value in [("group", 3), ("start", -1), ("mixup_alpha", np.nan), ("cutmix_alpha", 1e9), ("size", 2000)]:
        wrong = record.copy()
        wrong[name] = value
        with pytest.raises(ValueError, match="a number of the mix is outside its range"):
            torch.ops.deit_kernels._augment_sample_mix(torch.from_numpy(wrong.view(np.uint8)), 4)
    with pytest.raises(ValueError, match="count is a multiple of the mix group"):
        torch.ops.deit_kernels._augment_sample_mix(torch.from_numpy(record.view(np.uint8)), 3)
    with pytest.raises(ValueError, match="the extension is older than the Python code"):
        torch.ops.deit_kernels._augment_sample_mix(torch.zeros(8, dtype=torch.uint8), 2)


def test_a_mix_never_changes_between_versions() -> None:
    table = sample_mix(Policy.deit(), seed=7, step=3, start=0, count=6, group=2).table[::2]
    assert table["mode"].tolist() == [1, 2, 1]
    assert table["lam"].tolist() == [0.23636680663837759, 0.6970663265306123, 0.8520242088426022]
    assert table["box"].tolist() == [[0, 0, 0, 0], [52, 129, 160, 95], [0, 0, 0, 0]]


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.8, 1.0, 3.0])
def test_lam_is_distributed_as_numpys_beta(alpha: float) -> None:
    count = 40_000
    ours = draw(Mix(alpha, 0.0), count)["lam"]
    theirs = np.random.default_rng(0).beta(alpha, alpha, count)
    assert distance(ours, theirs) < 0.0138  # 1.95 sqrt(2 / count): rejected once in a thousand if it is true


@pytest.mark.parametrize("rounding", ["official", "timm"])
def test_boxes_are_distributed_as_those_of_timm(rounding: str) -> None:
    count = 10_000
    table = draw(Mix(0.0, 1.0, box_rounding=rounding), count)
    np.random.seed(0)
    theirs = []
    for lam in np.random.default_rng(1).random(count):
        (top, bottom, left, right), lam = cutmix_bbox_and_lam((3, 224, 224), lam)
        theirs.append((top, left, bottom - top, right - left, lam))
    theirs = np.array(theirs, float)
    for ours, expected in zip([*table["box"].T, table["lam"]], theirs.T, strict=True):
        assert distance(ours.astype(float), expected) < 0.0276
    kept = table["box"][(table["box"][:, :2] > 0).all(1) & ((table["box"][:, :2] + table["box"][:, 2:]) < 224).all(1)]
    odd = kept[:, 2] % 2 == 1
    assert odd.any() == (rounding == "timm")


def test_odd_boxes_lose_a_pixel_only_in_the_official_rounding() -> None:
    lam, centre = np.array([1 - (33 / 224) ** 2 - 1e-9]), np.full((1, 4), 2**31, np.uint32)
    assert cut_boxes(lam, centre, 224, round_up=False).tolist() == [[96, 96, 32, 32]]
    assert cut_boxes(lam, centre, 224, round_up=True).tolist() == [[96, 96, 33, 33]]


@pytest.mark.parametrize("prob", [1.0, 0.3])
def test_kinds_are_as_frequent_as_in_timm(prob: float) -> None:
    count = 20_000
    mode = draw(Mix(probability=prob, switch_probability=0.7), count)["mode"]
    theirs = Mixup(0.8, 1.0, prob=prob, switch_prob=0.7)
    np.random.seed(0)
    drawn = [theirs._params_per_batch() for _ in range(count)]
    expected = np.array([0 if lam == 1.0 else 1 + use_cutmix for lam, use_cutmix in drawn])
    for kind in range(3):
        assert abs((mode == kind).mean() - (expected == kind).mean()) < 0.02


def test_a_policy_without_mixing_and_an_empty_batch_mix_nothing() -> None:
    batch, plan, _ = mixed_batch(0)
    nothing = sample_mix(Policy.crop_and_flip(32), seed=0, step=0, start=0, count=len(SIZES), group=2)
    assert torch.equal(apply(batch, plan, nothing), apply(batch, plan))
    assert (nothing.lam == 1).all()
    assert sample_mix(POLICY, seed=0, step=0, start=8, count=0, group=8).rows.shape == (0, MIX.itemsize)


def test_apply_out_mixes_into_the_buffer() -> None:
    batch, plan, mix = mixed_batch(2)
    for layout in ("nchw", "channels_last", "patches"):
        expected = apply(batch, plan, mix, dtype=torch.bfloat16, layout=layout)
        out = torch.full_like(expected, float("nan"))
        apply_out(batch, plan, mix, out=out, layout=layout)
        assert torch.equal(out, expected)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"group": 3}, "an even number of rows, 2 or more, got 3"),
        ({"group": 0}, "an even number of rows"),
        ({"start": 2}, "start is a multiple of the mix group 4, got 2"),
        ({"start": -4}, "start is a multiple"),
        ({"count": 6}, "count is a multiple of the mix group 4, got 6"),
        ({"seed": -1}, "seed is an integer"),
        ({"step": 2**64}, "step is an integer"),
    ],
)
def test_what_sample_mix_refuses(change: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        sample_mix(POLICY, **{**dict(seed=0, step=0, start=0, count=8, group=4), **change})


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("partner", 8, "the partner is outside the batch"),
        ("partner", -1, "the partner is outside the batch"),
        ("mode", 3, "the mode is unknown"),
        ("lam", float("nan"), r"lam is outside \[0, 1\]"),
        ("lam", 1.5, r"lam is outside \[0, 1\]"),
        ("box", [0, 0, 33, 1], "the box leaves the output"),
        ("box", [-1, 0, 3, 1], "the box leaves the output"),
        ("box", [2**31 - 1, 0, 2**31 - 1, 1], "the box leaves the output"),
    ],
)
def test_a_bad_mix_is_refused_before_a_pixel_is_read(field: str, value: object, text: str) -> None:
    batch, plan, mix = mixed_batch(0)
    mix.table[field][5] = value
    with pytest.raises(ValueError, match=f"mix row 5: {text}"):
        apply(batch, plan, mix)
    with pytest.raises(ValueError, match=f"mix row 5: {text}"):
        reference.finish.checked_mix(mix.rows, 32)
    with pytest.raises(ValueError, match=f"mix row 5: {text}"):  # the op under apply trusts nobody either
        policy, rows = plan.policy, plan.place(batch).rows
        mean, std = list(policy.mean), list(policy.std)
        torch.ops.deit_kernels._augment_apply(batch.data, rows, mix.rows, 32, mean, std, torch.float32, "nchw", 16)


def test_a_mix_for_another_batch_is_refused() -> None:
    batch, plan, _ = mixed_batch(0)
    other = sample_mix(POLICY, seed=0, step=0, start=0, count=4, group=4)
    with pytest.raises(ValueError, match="mix has one row for each of the 8 rows of the plan"):
        apply(batch, plan, other)
