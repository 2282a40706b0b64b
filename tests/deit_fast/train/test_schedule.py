"""The two schedules: by the step, and as the official trainer's loop sets it."""

import math

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from deit_fast.config import Config
from deit_fast.train.optimizer import learning_rates


def test_warm_up_is_linear_and_the_cosine_ignores_it() -> None:
    rate = learning_rates(Config(epochs=10, warmup_epochs=1.0).optim, epoch_steps=10, peak=1e-3)
    assert rate(0) == 1e-6
    assert rate(5) == pytest.approx((1e-6 + 1e-3) / 2)
    for step in (10, 50, 99):
        assert rate(step) == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * step / 100)) / 2)


@pytest.mark.parametrize("warmup", [5, 0])
def test_the_official_rates_are_those_of_its_loop(warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    scheduler = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-5, warmup_lr_init=1e-6, warmup_t=warmup)
    config = Config().replace(schedule="official", warmup_epochs=float(warmup))
    rate = learning_rates(config.optim, epoch_steps=7, peak=1e-3)
    for epoch in range(300):  # main.py: train_one_epoch(…); lr_scheduler.step(epoch)
        for step in (7 * epoch, 7 * epoch + 6):
            assert rate(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        scheduler.step(epoch)


def test_the_official_rate_is_one_epoch_late_and_never_reaches_its_peak() -> None:
    rate = learning_rates(Config(schedule="official").optim, epoch_steps=1, peak=1e-3)
    assert rate(0) == rate(1) == 1e-6
    assert max(map(rate, range(300))) == rate(6) == pytest.approx(9.993e-4, rel=1e-4)
    assert rate(299) == pytest.approx(1.0109e-5, rel=1e-4)


def test_by_the_step_the_peak_follows_the_warm_up_and_the_floor_is_the_end() -> None:
    rate = learning_rates(Config().optim, epoch_steps=4, peak=1e-3)
    assert rate(19) < rate(20) == pytest.approx(1e-5 + 9.9e-4 * (1 + math.cos(math.pi / 60)) / 2)
    assert rate(1199) == pytest.approx(1e-5, rel=1e-2)
