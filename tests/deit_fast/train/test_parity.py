"""The trainer beside a plain PyTorch loop written from the official code: the losses agree step by step.

The plain loop has timm's model, the official loss formulas (facebookresearch/deit losses.py), timm's parameter groups
and torch's AdamW. It shares with the trainer only the starting weights and the batches.
"""

import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from deit_fast import create_model
from deit_fast.config import Config
from deit_fast.data import Share, Target, TrainLoader, open_dataset
from deit_fast.train import train
from deit_fast.train.step import losses_of
from deit_kernels import MixedTarget, augment

SOFT = {"distill": "soft", "alpha": 0.1, "tau": 3.0}
SETTINGS = {
    "hard": {"distill": "hard"},
    "hard, no smoothing, alpha 0.3": {"distill": "hard", "alpha": 0.3, "label_smoothing": 0.0},
    "soft, paper": {**SOFT, "kl_normalizer": "batch"},
    "soft, official code": {"distill": "soft", "alpha": 0.5, "tau": 1.0, "kl_normalizer": "numel"},
    "none": {"distill": "none", "teacher": ""},
    "hard on the class token": {"distill": "hard", "distill_on": "class"},
    "soft on the class token": {**SOFT, "kl_normalizer": "batch", "distill_on": "class"},
    "hard, mixed": {"distill": "hard", "mixup": 0.8, "cutmix": 1.0},
    "none, mixed in the official order": {"distill": "none", "teacher": "", "mixup": 0.8, "order": "official"},
}


def dense_target(target: MixedTarget, classes: int, smoothing: float) -> Tensor:
    """timm's mixup_target, a row at a time because it knows one lam only."""
    pairs = torch.stack([target.labels, target.partner_labels], 1)
    rows = [
        mixup_target(pair, classes, lam, smoothing)[:1] for pair, lam in zip(pairs, target.lam.tolist(), strict=True)
    ]
    return torch.cat(rows)


def official_loss(
    config: Config, cls_logits: Tensor, dist_logits: Tensor, teacher_logits: Tensor | None, target: Target
) -> Tensor:
    """losses.py and eq. 2 and 3, term by term; main.py takes the soft-target criterion where images are mixed."""
    smoothing = config.distill.label_smoothing
    if isinstance(target, MixedTarget):
        base = SoftTargetCrossEntropy()(cls_logits, dense_target(target, cls_logits.shape[1], smoothing))
    else:
        base = LabelSmoothingCrossEntropy(smoothing)(cls_logits, target)
    if config.distill.distill == "none":
        return base
    if config.distill.distill == "hard":
        alpha = 0.5 if config.distill.alpha is None else config.distill.alpha
        return (1 - alpha) * base + alpha * F.cross_entropy(dist_logits, teacher_logits.argmax(dim=1))
    tau = config.distill.tau
    divergence = F.kl_div(
        F.log_softmax(dist_logits / tau, dim=1),
        F.log_softmax(teacher_logits / tau, dim=1),
        reduction="sum",
        log_target=True,
    )
    rows = {"batch": len(dist_logits), "numel": dist_logits.numel()}[config.distill.kl_normalizer]
    return (1 - config.distill.alpha) * base + config.distill.alpha * divergence * tau * tau / rows


def plain_losses(config: Config, teacher: nn.Module | None) -> list[float]:
    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3, "img_size": 16}
    model = timm.create_model(config.model.model, **sizes)
    torch.manual_seed(config.optim.seed)
    ours = create_model(config.model.model, image_size=16, patch_size=8, width=32, depth=2, heads=2, classes=3)
    model.load_state_dict(ours.state_dict())
    distilled = "distilled" in config.model.model
    if distilled:
        model.set_distilled_training(True)
    skipped = model.no_weight_decay() - {"dist_token"}  # the official code, on timm 0.3.2, decays it
    groups = param_groups_weight_decay(model, config.optim.weight_decay, no_weight_decay_list=skipped)
    optimizer = torch.optim.AdamW(groups, lr=0.0)

    dataset, _ = open_dataset(config.data.data)
    steps_per_epoch = len(dataset) // config.optim.batch_size
    total, warmup = config.optim.epochs * steps_per_epoch, config.optim.warmup_epochs * steps_per_epoch
    peak = config.optim.lr * config.optim.batch_size / 512
    mixes = config.data.mixup or config.data.cutmix
    batches = TrainLoader(
        dataset,
        augment.Policy(16, mix=augment.Mix(config.data.mixup, config.data.cutmix) if mixes else None),
        Share(len(dataset), config.optim.batch_size, order=config.data.order, data_seed=config.optim.data_seed),
        total_steps=total,
    )
    losses = []
    for step, batch in enumerate(batches):
        if step < warmup:
            lr = config.optim.warmup_lr + step * (peak - config.optim.warmup_lr) / warmup
        else:
            cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / total, dtype=torch.float64)).item())
            lr = config.optim.min_lr + (peak - config.optim.min_lr) * cosine
        for group in optimizer.param_groups:
            group["lr"] = lr
        teacher_logits = None
        if teacher is not None:
            with torch.no_grad():
                teacher_logits = teacher(batch.images)
        outputs = model.train()(batch.images)
        cls_logits, dist_logits = outputs if distilled else (outputs, outputs)
        loss = official_loss(config, cls_logits, dist_logits, teacher_logits, batch.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_trainer_is_the_plain_loop(tiny: Config, setting: str) -> None:
    import tiny_teachers

    changes = SETTINGS[setting]
    plain_model = changes.get("distill_on") == "class" or changes["distill"] == "none"
    model = "deit_tiny_patch16_224" if plain_model else tiny.model.model
    config = tiny.replace(model=model, drop_path=0.0, epochs=12, warmup_epochs=2, eval_every=12, **changes)
    train(config)
    lines = (Path(config.run.out) / "metrics.jsonl").read_text().splitlines()
    trained = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    teacher = None if config.distill.distill == "none" else tiny_teachers.three_classes()
    plain = plain_losses(config, teacher)
    assert len(plain) == 36
    assert plain[-1] < 0.9 * plain[0]  # something is learnt, so the agreement is not of constants
    # Both are fp32 with sums in another order; AdamW's division amplifies that a little every step.
    assert trained[:5] == pytest.approx(plain[:5], rel=1e-5)
    assert trained == pytest.approx(plain, rel=2e-3)


@pytest.mark.parametrize("setting", SETTINGS)
def test_gradients_of_every_distillation_setting(setting: str) -> None:
    config = Config(data="x", teacher="x").replace(**SETTINGS[setting])
    torch.manual_seed(0)
    cls_logits, dist_logits, teacher_logits = (3 * torch.randn(6, 11, dtype=torch.float64) for _ in range(3))
    labels = torch.randint(11, (6,))
    if config.data.mixup:
        labels = MixedTarget(labels, labels.flip(0), torch.rand(6))
    gradients = []
    on_token = config.distill.distill != "none" and config.distill.distill_on == "token"
    teacher = None if config.distill.distill == "none" else teacher_logits
    for formula in ("ours", "plain"):
        cls_leaf, dist_leaf = cls_logits.clone().requires_grad_(), dist_logits.clone().requires_grad_()
        if formula == "ours":
            loss, *_ = losses_of(config.distill, (cls_leaf, dist_leaf) if on_token else cls_leaf, teacher, labels)
        else:
            loss = official_loss(config, cls_leaf, dist_leaf if on_token else cls_leaf, teacher, labels)
        loss.backward()
        gradients.append((loss.detach(), cls_leaf.grad, dist_leaf.grad))
    exact = dict(rtol=1e-9, atol=1e-12) if isinstance(labels, Tensor) else dict(rtol=1e-6, atol=1e-8)  # timm: float32
    torch.testing.assert_close(gradients[0], gradients[1], **exact)
