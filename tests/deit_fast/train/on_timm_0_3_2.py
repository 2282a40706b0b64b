"""The official training on the timm that the official code was written for, in a process of its own.

    PYTHONPATH=FOLDER python on_timm_0_3_2.py SETTINGS.json RESULT.pt

FOLDER holds timm 0.3.2 from PyPI. Its model, transforms, Mixup, losses, optimizer, schedule, moving average and
accuracy are used; what stands between them follows facebookresearch/deit (main.py, engine.py, models.py, losses.py).
No line of deit_fast is imported. test_timm_0_3_2.py compares the result with a run of the trainer.

Three things are not timm's own: the module torch._six that today's torch lacks, the device of mixed targets, whose
default is "cuda", and trunc_normal_, which today's torch draws in another way than timm's copy of an older one.
"""

# ruff: noqa: E402
import collections.abc
import functools
import importlib
import json
import sys
import types

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from torchvision import datasets, transforms

sys.modules["torch._six"] = types.ModuleType("torch._six")
sys.modules["torch._six"].container_abcs = collections.abc

import timm
import timm.data.mixup
import timm.models.vision_transformer
from timm.data import Mixup, create_transform
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer
from timm.scheduler import create_scheduler
from timm.utils import ModelEma, accuracy

timm.data.mixup.mixup_target.__defaults__ = (1.0, 0.0, "cpu")
timm.models.vision_transformer.trunc_normal_ = nn.init.trunc_normal_

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Distilled(VisionTransformer):
    """timm's model with the distillation token and its classifier of models.py."""

    def __init__(self, **sizes) -> None:
        super().__init__(**sizes)
        self.dist_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 2, self.embed_dim))
        self.head_dist = nn.Linear(self.embed_dim, self.num_classes)
        for tensor in (self.dist_token, self.pos_embed):
            nn.init.trunc_normal_(tensor, std=0.02)
        self._init_weights(self.head_dist)

    def forward(self, images: Tensor):
        tokens = [token.expand(len(images), -1, -1) for token in (self.cls_token, self.dist_token)]
        x = self.pos_drop(torch.cat([*tokens, self.patch_embed(images)], dim=1) + self.pos_embed)
        x = self.norm(nn.Sequential(*self.blocks)(x))
        heads = self.head(x[:, 0]), self.head_dist(x[:, 1])
        return heads if self.training else sum(heads) / 2


class GivenMixup(Mixup):
    """timm's Mixup, mode "batch", with given draws: [mode, lam, (top, left, height, width)] for each step."""

    def __init__(self, draws: list, **options) -> None:
        super().__init__(mixup_alpha=0.8, cutmix_alpha=1.0, **options)
        self.draws = iter(draws)

    def _params_per_batch(self):
        mode, lam, (top, left, height, width) = next(self.draws)
        timm.data.mixup.rand_bbox = lambda *_, **__: (top, top + height, left, left + width)
        return lam, mode == "cutmix"


def loss_of(given: dict, criterion: nn.Module, outputs, teacher_logits: Tensor | None, target: Tensor) -> Tensor:
    """losses.py: a weighted sum of the base criterion and of what the second head learns from the teacher."""
    if given["distill"] == "none":
        return criterion(outputs, target)
    outputs, outputs_kd = outputs
    if given["distill"] == "hard":
        learnt = F.cross_entropy(outputs_kd, teacher_logits.argmax(dim=1))
    else:
        student, teacher = ((logits / given["tau"]).log_softmax(1) for logits in (outputs_kd, teacher_logits))
        learnt = F.kl_div(student, teacher, reduction="sum", log_target=True) * given["tau"] ** 2 / outputs_kd.numel()
    return (1 - given["alpha"]) * criterion(outputs, target) + given["alpha"] * learnt


def run(given: dict) -> dict:
    torch.manual_seed(given["seed"])
    kind = VisionTransformer if given["distill"] == "none" else Distilled
    norm = functools.partial(nn.LayerNorm, eps=1e-6)
    model = kind(mlp_ratio=4, qkv_bias=True, norm_layer=norm, **given["sizes"])
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    teacher = None
    if given["distill"] != "none":
        module, function = given["teacher"].split(":")
        teacher = getattr(importlib.import_module(module), function)()

    side = given["sizes"]["img_size"]
    augmented = create_transform(side, is_training=True, scale=(1.0, 1.0), hflip=0.0, interpolation="bicubic")
    augmented.transforms = [each for each in augmented.transforms if not isinstance(each, transforms.ColorJitter)]
    train = datasets.ImageFolder(f"{given['data']}/train", augmented)
    evaluation = [transforms.Resize(int(side / 0.875), interpolation=3), transforms.CenterCrop(side)]
    evaluation = transforms.Compose([*evaluation, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    val = datasets.ImageFolder(f"{given['data']}/val", evaluation)
    sampler = DistributedSampler(train, num_replicas=1, rank=0, shuffle=True)
    loader = DataLoader(train, sampler=sampler, batch_size=given["batch_size"], drop_last=True)

    mixup = None
    criterion = LabelSmoothingCrossEntropy(smoothing=given["smoothing"])
    if given["mixes"]:
        mixup = GivenMixup(given["mixes"], label_smoothing=given["smoothing"], num_classes=len(train.classes))
        criterion = SoftTargetCrossEntropy()

    arguments = types.SimpleNamespace(
        epochs=given["epochs"], lr=given["peak_lr"], weight_decay=0.05, opt=given["optimizer"], opt_eps=1e-8,
        opt_betas=None, momentum=0.9, sched="cosine", lr_noise=None, lr_noise_pct=0.67, lr_noise_std=1.0, seed=0,
        warmup_lr=1e-6, min_lr=1e-5, decay_epochs=30, warmup_epochs=given["warmup_epochs"], cooldown_epochs=10,
        patience_epochs=10, decay_rate=0.1,
    )  # fmt: skip
    average = ModelEma(model, decay=given["ema_decay"])
    optimizer = create_optimizer(arguments, model)
    schedule, _ = create_scheduler(arguments, optimizer)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = [names[id(each)] for group in optimizer.param_groups if group["weight_decay"] for each in group["params"]]

    losses, rates, order = [], [], []
    for epoch in range(given["epochs"]):
        sampler.set_epoch(epoch)
        order.append(list(sampler))
        model.train()
        for images, target in loader:
            images, target = (images, target) if mixup is None else mixup(images, target)
            with torch.no_grad():
                teacher_logits = None if teacher is None else teacher(images)
            loss = loss_of(given, criterion, model(images), teacher_logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update(model)
            losses.append(loss.item())
            rates.append(optimizer.param_groups[0]["lr"])
        schedule.step(epoch)

    model.eval()
    images, labels = next(iter(DataLoader(val, batch_size=len(val))))
    with torch.no_grad():
        logits = model(images)
    return {
        "version": timm.__version__, "initial": initial, "decayed": sorted(decayed), "losses": losses, "rates": rates,
        "order": order, "model": model.state_dict(), "ema": average.ema.state_dict(),
        "top1": accuracy(logits, labels)[0].item(), "loss": F.cross_entropy(logits, labels).item(),
    }  # fmt: skip


if __name__ == "__main__":
    settings, result = sys.argv[1:]
    with open(settings) as file:
        torch.save(run(json.load(file)), result)
