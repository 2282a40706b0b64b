"""The trainer by DeiT III's recipe beside a plain loop over timm's model: the losses agree step by step.

The plain loop has the official formulas: targets above 0 are 1 (engine.py), BCEWithLogitsLoss (main.py), Apex's LAMB.
It shares with the trainer only the starting weights and the batches: 3-Augment, colour jitter, mixup and CutMix.
"""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import nn

from deit_fast import create_model
from deit_fast.config import Config
from deit_fast.data import Share, TrainLoader, open_dataset
from deit_fast.model import IMAGENET_NORMALISATION
from deit_fast.recipes.named import recipe
from deit_fast.train import train
from deit_fast.train.step import losses_of
from deit_kernels import MixedTarget
from tests.deit_fast.train.apex_lamb import ApexLamb
from tests.deit_fast.train.test_parity import dense_target

SIZES = {"patch_size": 8, "width": 32, "depth": 2, "heads": 2}


def small(name: str, tiny: Config, **changes) -> Config:
    return recipe(name).replace(
        data=tiny.data.data, out=tiny.run.out, image_size=16, epochs=10, warmup_epochs=2, batch_size=8, repeats=1,
        drop_path=0.0, threads=1, log_every=1, eval_every=10, precision="fp32", **SIZES, **changes,
    )  # fmt: skip


def plain_losses(config: Config, teacher: nn.Module | None = None) -> list[float]:
    torch.manual_seed(config.optim.seed)
    ours = create_model(config.model.model, image_size=16, classes=3, **SIZES)
    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3, "img_size": 16}
    distilled, weights = "distilled" in config.model.model, ours.state_dict()
    if distilled:  # timm's class has positions for its tokens too: 0, and never learnt
        model = timm.create_model("deit_tiny_distilled_patch16_224", **sizes, init_values=1e-4)
        model.set_distilled_training(True)
        weights["pos_embed"] = F.pad(weights["pos_embed"], (0, 0, 2, 0))
    else:
        model = timm.create_model(config.model.model, **sizes)
    model.load_state_dict(weights)
    skipped = model.no_weight_decay() - {"dist_token"}
    groups = param_groups_weight_decay(model, config.optim.weight_decay, no_weight_decay_list=skipped)
    optimizer = ApexLamb([(group["params"], group["weight_decay"]) for group in groups])

    dataset, _ = open_dataset(config.data.data)
    steps_per_epoch = len(dataset) // config.optim.batch_size
    total, warmup = config.optim.epochs * steps_per_epoch, config.optim.warmup_epochs * steps_per_epoch
    share = Share(len(dataset), config.optim.batch_size, data_seed=config.optim.data_seed)
    losses = []
    batches = TrainLoader(dataset, config.data.training_policy(IMAGENET_NORMALISATION), share, total_steps=total)
    for step, batch in enumerate(batches):
        lr = config.optim.lr  # unscaled
        if step < warmup:
            lr = 1e-6 + (lr - 1e-6) * step / warmup
        else:
            lr = 1e-5 + (lr - 1e-5) * 0.5 * (1 + math.cos(math.pi * step / total))
        outputs = model.train()(batch.images)
        targets = dense_target(batch.target, 3, config.distill.label_smoothing)
        targets = targets.gt(0.0).type(targets.dtype)
        loss = F.binary_cross_entropy_with_logits(outputs[0] if distilled else outputs, targets)
        if teacher is not None:
            with torch.no_grad():
                labels = teacher(batch.images).argmax(1)
            loss = 0.5 * 3 * loss + 0.5 * F.cross_entropy(outputs[1], labels)  # the sum over 3 classes: --bce-sum
        model.zero_grad()
        loss.backward()
        if distilled:
            model.pos_embed.grad[:, :2] = 0
        optimizer.step(lr)
        losses.append(loss.item())
    return losses


def trained_losses(config: Config) -> list[float]:
    train(config)
    lines = (Path(config.run.out) / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def check(trained: list[float], plain: list[float]) -> None:
    assert len(plain) == 30
    assert sum(plain[-6:]) < 0.97 * sum(plain[:6])  # something is learnt, so the agreement is not of constants
    assert trained == pytest.approx(plain, rel=1e-5)  # both are fp32 with sums in another order


@pytest.mark.parametrize("name", ["deit3-small", "deit3-small-distilled"])
def test_the_loss_is_one_graph(name: str) -> None:
    torch.manual_seed(0)
    heads = tuple(torch.randn(6, 11, requires_grad=True) for _ in range(2))
    outputs = heads if "distilled" in name else heads[0]
    teacher = torch.randn(6, 11) if "distilled" in name else None
    labels = torch.randint(11, (6,))
    target, counted = MixedTarget(labels, labels.flip(0), torch.rand(6)), torch.tensor(6.0)
    of_recipe = partial(losses_of, recipe(name).distill)
    expected = of_recipe(outputs, teacher, target, counted)
    compiled = torch.compile(of_recipe, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(outputs, teacher, target, counted), expected)


def test_deit3s_training_is_the_plain_loop(tiny: Config) -> None:
    config = small("deit3-small", tiny, lr=0.1)
    assert config.distill.bce_loss and config.optim.optimizer == "lamb" and config.data.mixup and config.data.cutmix
    check(trained_losses(config), plain_losses(config))


def test_the_distilled_training_is_the_plain_loop(tiny: Config) -> None:
    import tiny_teachers

    config = small("deit3-small-distilled", tiny, lr=0.1, teacher=tiny.distill.teacher)
    check(trained_losses(config), plain_losses(config, tiny_teachers.three_classes()))
