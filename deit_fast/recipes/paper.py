"""The trainings of the DeiT paper (arXiv 2012.12877), one function each; `named.py` names them.

Every docstring has the command, the top-1 on ImageNet's validation images (marked "paper", with its table) and a time.
Nothing here has been trained on ImageNet by us yet. A time marked "paper" was measured by its authors on V100s. One
marked "estimate" is a lower bound for 8 × H100, and not measured: three forward passes of the student and one of the
teacher an image, at 22.9 % of 989 TFLOP/s (docs/recipes.md has the formula and its source).
Where the numbers come from stands beside each of them in tests/deit_fast/recipe_table.json, which a test holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..config import Config

TEACHER = "regnety_160.deit_in1k"
# --distill soft has no defaults, except for the two recipes that stand for one of its sources.
SOFT = {
    "paper": {"alpha": 0.1, "tau": 3.0, "kl_normalizer": "batch"},
    "official": {"alpha": 0.5, "tau": 1.0, "kl_normalizer": "numel"},
}


def table_9(model: str, **changes: Any) -> Config:
    """The column DeiT-B of the paper's Table 9, which serves all three sizes."""
    settings: dict[str, Any] = {
        "rand_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25, "mixup": 0.8, "cutmix": 1.0, "repeats": 3,
        "drop_path": 0.1,
    }  # fmt: skip
    return Config(model=model, **settings | changes)


def distilled(model: str, **changes: Any) -> Config:
    """`table_9` with hard distillation on the token, from RegNetY-16GF."""
    return table_9(model, **{"distill": "hard", "teacher": TEACHER} | changes)


def deit() -> Config:
    """DeiT-S distilled on ImageNet from RegNetY-16GF, hard labels on the distillation token (paper Table 3, row 6).

    python -m deit_fast.train --data /imagenet

    Top-1 81.2 (paper, Tables 3 and 5). Time: below 3 days on 4 V100 (paper); 3.5 h on 8 × H100 (estimate).
    For the other sizes --model deit_tiny_distilled_patch16_224 (74.5, paper) or deit_base_distilled_patch16_224.
    """
    return distilled("deit_small_distilled_patch16_224")


def deit_tiny() -> Config:
    """DeiT-Ti for 300 epochs without distillation.

    python -m deit_fast.train --recipe deit-tiny --data /imagenet

    Top-1 72.2 (paper, Table 5). Time: 0.4 h on 8 × H100 (estimate; no data path feeds that yet).
    """
    return table_9("deit_tiny_patch16_224")


def deit_small() -> Config:
    """DeiT-S for 300 epochs without distillation.

    python -m deit_fast.train --recipe deit-small --data /imagenet

    Top-1 79.8 (paper, Table 5). Time: below 3 days on 4 V100 (paper); 1.6 h on 8 × H100 (estimate).
    """
    return table_9("deit_small_patch16_224")


def deit_base() -> Config:
    """DeiT-B for 300 epochs without distillation: Table 3's first row, Table 8's default, and a teacher of Table 2.

    python -m deit_fast.train --recipe deit-base --data /imagenet

    Top-1 81.8 ± 0.2 (paper, Tables 5 and 8). Time: 53 h on a node of V100, 37 h on two (paper); 6.2 h on 8 × H100
    (estimate). Table 8's ablations, each a flag (in brackets the paper's top-1):
    --optimizer sgd (74.5; its learning rate is not published, give --lr), --rand-augment "" (79.6), --rand-augment
    original (81.2: AutoAugment), --mixup 0 (78.7), --cutmix 0 (80.0), --mixup 0 --cutmix 0 (75.8), --erase 0 (4.3: did
    not train), --drop-path 0 (3.4: did not train), --repeats 1 (76.5), --dropout 0.1 (81.3; the paper does not say how
    much, ViT has 0.1). The moving average, 81.9, is evaluated in every run.
    """
    return table_9("deit_base_patch16_224")


def deit_base_soft() -> Config:
    """DeiT-B with soft distillation on its only token: "usual distillation", Table 3, row 2.

    python -m deit_fast.train --recipe deit-base-soft --data /imagenet

    Top-1 81.8 (paper, Table 3). Time: 8.1 h on 8 × H100 (estimate).
    """
    return distilled("deit_base_patch16_224", distill="soft", distill_on="class", **SOFT["paper"])


def deit_base_hard() -> Config:
    """DeiT-B with hard distillation on its only token: Table 3, row 3.

    python -m deit_fast.train --recipe deit-base-hard --data /imagenet

    Top-1 83.0 (paper, Table 3). Time: 8.1 h on 8 × H100 (estimate).
    """
    return distilled("deit_base_patch16_224", distill_on="class")


def deit_base_distilled() -> Config:
    """DeiT-B⚗: hard distillation on the distillation token. One training gives Table 3's last three rows.

    python -m deit_fast.train --recipe deit-base-distilled --data /imagenet

    Top-1 of the class token 83.0, the distillation token 83.1, both 83.4 (paper, Table 3): the rows cls, dist and fused
    or softmax of the table at the end. Time: 8.1 h on 8 × H100 (estimate). Table 2's other teachers:
    --teacher runs/teacher-4gf and so on; of RegNetY-4GF 82.7, 8GF 82.7, 12GF 83.1, 16GF 83.1, DeiT-B 81.9 (paper).
    """
    return distilled("deit_base_distilled_patch16_224")


def deit_base_distilled_1000() -> Config:
    """DeiT-B⚗ for 1000 epochs (Figure 3, Table 5).

    python -m deit_fast.train --recipe deit-base-distilled-1000 --data /imagenet

    Top-1 84.2; Ti 76.6 and S 82.6 by --model (paper, Table 5). Time: 27 h on 8 × H100 (estimate).
    """
    return distilled("deit_base_distilled_patch16_224", epochs=1000)


def official() -> Config:
    """`deit` with what the official code does, where that is not what the paper says or what one would expect.

    python -m deit_fast.train --recipe official --data /imagenet

    - schedule: the rate changes once an epoch and one epoch late; epochs 0 and 1 run at the warm-up's first rate
    - decay_dist_token: the distillation token is decayed, the class token is not
    - order: the index lists of its RASampler, which depend on the epoch and the number of processes alone; each process
      mixes its batch with its own mirror image, with one draw
    - fusion: the two heads' logits are averaged (the paper adds their softmaxes)
    - --distill soft: alpha 0.5, tau 1, the divergence divided by rows × classes (the paper: 0.1, 3, rows)
    - initialisation: the class token too from N(0, 0.02²) (today's timm: 1e-6); the model has it in every recipe
    - pos_embed_resize: bicubic without antialiasing (a = −0.75)
    - ema_decay: 0.99996, kept although never evaluated; here it is evaluated
    - crop_ratio: 0.875 at every resolution

    For its fp16 with a loss scaler type --precision fp16. Not repeated: its random numbers, which are PyTorch's and
    NumPy's, and that a resumed run uses the next epoch's learning rate.
    Top-1 81.2 (paper, Table 5; its released file 81.16, the official README). Time: as `deit`.
    """
    quirks = {
        "schedule": "official", "order": "official", "decay_dist_token": True, "fusion": "logits",
        "pos_embed_resize": "official", "ema_decay": 0.99996, "crop_ratio": 0.875,
    }  # fmt: skip
    return distilled("deit_small_distilled_patch16_224", **quirks)


def paper() -> Config:
    """`deit` by the paper's text, where the official code or we do otherwise.

    python -m deit_fast.train --recipe paper --data /imagenet

    - fusion: "we add the softmax output by the two classifiers" (section 4)
    - --distill soft: lambda 0.1, tau 3, the divergence averaged over rows (section 4 and equation 2)
    - decay_dist_token: the distillation token is used as the class token is, so neither is decayed
    - ema_decay: none (Table 9 has no average, Table 8 lists it as an ablation)
    - schedule: a warm-up of 5 epochs and a cosine, by the step; repeated augmentation in batches that no number of
      processes changes

    Top-1 81.2 (paper, Table 5). Time: as `deit`.
    """
    return distilled("deit_small_distilled_patch16_224", fusion="softmax", decay_dist_token=False, ema_decay=0.0)


def _at(size: int, model: str, **changes: Any) -> Config:
    """Fine-tuning a trained model at another resolution, as the official README has it for 384 pixels."""
    settings: dict[str, Any] = {
        "image_size": size, "weights": "timm", "epochs": 30, "batch_size": 512, "lr": 5e-6, "min_lr": 5e-6,
        "weight_decay": 1e-8,
    }  # fmt: skip
    return table_9(model, **settings | changes)


def finetune_384() -> Config:
    """DeiT-B fine-tuned at 384 pixels, as released: in evaluation mode, so without stochastic depth.

    python -m deit_fast.train --recipe finetune-384 --data /imagenet --weights runs/deit-base

    --weights is a run, or a file of ours, the official code's, timm's or Hugging Face's; "timm", the default, fetches.
    Top-1 83.1 (paper, Tables 5 and 10), which needs --crop-ratio 1: the released file has 82.9 at the official 0.875
    (README) and 83.1 at 1.0 (timm's results). The paper fine-tunes for 25 epochs, the README for 30. With stochastic
    depth: --train-mode train --drop-path 0.1. By SGD: --optimizer sgd (83.1, Table 8). Time: 20 h on 8 V100 (paper, 25
    epochs); 2 h on 8 × H100 (estimate).
    """
    return _at(384, "deit_base_patch16_224", train_mode="eval", drop_path=0.0)


def finetune_320() -> Config:
    """`finetune-384` at 320 pixels (Table 10).

    python -m deit_fast.train --recipe finetune-320 --data /imagenet --weights runs/deit-base

    Top-1 82.7 (paper, Table 10). Time: 1.3 h on 8 × H100 (estimate).
    """
    return _at(320, "deit_base_patch16_224", train_mode="eval", drop_path=0.0)


def finetune_160() -> Config:
    """`finetune-384` at 160 pixels (Table 10).

    python -m deit_fast.train --recipe finetune-160 --data /imagenet --weights runs/deit-base

    Top-1 79.9 (paper, Table 10). Time: 0.3 h on 8 × H100 (estimate).
    """
    return _at(160, "deit_base_patch16_224", train_mode="eval", drop_path=0.0)


def finetune_384_distilled() -> Config:
    """DeiT-B⚗ fine-tuned at 384 pixels with its teacher, which sees the same 384 pixels; not in the released code.

    python -m deit_fast.train --recipe finetune-384-distilled --data /imagenet --weights runs/deit-base-distilled

    The official trainer fine-tunes in evaluation mode, where the model gives one tensor and its distillation raises
    NotImplementedError; here it is in training mode, with stochastic depth 0.1 (--drop-path 0 for none). What was
    published is the rest: the settings are those of `finetune-384`.
    Top-1 84.5 from 300 epochs, 85.2 from 1000 (paper, Table 5; the released file of 1000 epochs has 85.2 at a crop
    ratio of 0.875 and 85.4 at 1.0). The paper's teacher is fine-tuned at 384 as well (FixRes); --teacher takes one.
    Time: 2.5 h on 8 × H100 (estimate).
    """
    return _at(384, "deit_base_distilled_patch16_224", distill="hard", teacher=TEACHER)


def finetune() -> Config:
    """DeiT-B fine-tuned on another data set (Table 7), with the settings published for CIFAR-10.

    python -m deit_fast.train --recipe finetune --data /cifar-10-batches-py --weights runs/deit-base

    Top-1 99.1 on CIFAR-10, 90.8 on CIFAR-100 (paper, Table 7). docs/recipes.md has the settings of every data set that
    anyone has published. Time: CIFAR-10 1.3 h on 8 × H100 (estimate, without repeats' decoding).
    """
    settings = {"weights": "timm", "epochs": 1000, "batch_size": 768, "lr": 5e-6, "min_lr": 1e-6, "erase": 0.0}
    return table_9("deit_base_patch16_224", **settings)


def cifar10() -> Config:
    """DeiT-B on CIFAR-10 from scratch, at 224 pixels; 7200 epochs are as many images as 300 of ImageNet.

    python -m deit_fast.train --recipe cifar10 --data /cifar-10-batches-py

    Top-1 97.5; with a RegNetY-16GF trained on CIFAR-10 (98.0) as teacher 98.5 (paper, section 5.4): add
    --model deit_base_distilled_patch16_224 --distill hard --teacher runs/cifar10-teacher.
    Time: 6.2 h on 8 × H100 (estimate).
    """
    return table_9("deit_base_patch16_224", epochs=7200)


def _regnety(gigaflops: int, top1: float) -> Callable[[], Config]:
    """A teacher of Table 2: the paper trains it "with the same data and same data-augmentation as DeiT"."""

    def teacher() -> Config:
        return table_9(f"regnety_{gigaflops:02}0", drop_path=0.0)

    teacher.__doc__ = f"""RegNetY-{gigaflops}GF, a teacher of Table 2, trained on ImageNet as DeiT is.

    python -m deit_fast.train --recipe teacher-{gigaflops}gf --data /imagenet --out runs/teacher-{gigaflops}gf

    Top-1 {top1} (paper, Table 2). The paper trained it with DeiT's data and augmentation and says no more; optimizer,
    rate and epochs are DeiT's here, which nobody has published. Then --teacher runs/teacher-{gigaflops}gf.
    Time: {3 * gigaflops * 0.118:.1f} h on 8 × H100 (estimate).
    """
    return teacher


# By name: that of the function, with hyphens.
PAPER_RECIPES = {
    function.__name__.replace("_", "-"): function
    for function in (
        deit, deit_tiny, deit_small, deit_base, deit_base_soft, deit_base_hard, deit_base_distilled,
        deit_base_distilled_1000, official, paper, finetune_384, finetune_384_distilled, finetune_320, finetune_160,
        finetune, cifar10,
    )
}  # fmt: skip
_REGNETY_TOP1 = {4: 80.0, 8: 81.7, 12: 82.4, 16: 82.9}  # by gigaflops
PAPER_RECIPES |= {f"teacher-{gigaflops}gf": _regnety(gigaflops, top1) for gigaflops, top1 in _REGNETY_TOP1.items()}
