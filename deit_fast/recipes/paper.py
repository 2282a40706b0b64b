"""The trainings of the DeiT paper (arXiv 2012.12877). docs/recipes.md has the top-1, the source and the time of each.

Nothing here has been trained on ImageNet by us yet. Where the numbers come from stands beside each of them in
tests/deit_fast/recipes/recipe_table.json, which a test holds.
"""

from __future__ import annotations

from . import Recipes

TEACHER = "regnety_160.deit_in1k"
# --distill soft has no defaults, except for the two recipes that stand for one of its sources.
SOFT = {
    "paper": {"alpha": 0.1, "tau": 3.0, "kl_normalizer": "batch"},
    "official": {"alpha": 0.5, "tau": 1.0, "kl_normalizer": "numel"},
}

# The column DeiT-B of the paper's Table 9, which serves all three sizes.
_TABLE_9 = {
    "model": "deit_base_patch16_224", "rand_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25, "mixup": 0.8,
    "cutmix": 1.0, "repeats": 3, "drop_path": 0.1,
}  # fmt: skip
_HARD = {"distill": "hard", "teacher": TEACHER}
_SMALL = _TABLE_9 | _HARD | {"model": "deit_small_distilled_patch16_224"}
_BASE = _TABLE_9 | _HARD | {"model": "deit_base_distilled_patch16_224"}
# Fine-tuning at another resolution: as the official README has it for 384 pixels, with stochastic depth.
_FINETUNED = {
    "image_size": 384, "weights": "timm", "epochs": 30, "batch_size": 512, "lr": 5e-6, "min_lr": 5e-6,
    "weight_decay": 1e-8,
}  # fmt: skip
# In evaluation mode, as released, so without it.
_RELEASED = _TABLE_9 | _FINETUNED | {"train_mode": "eval", "drop_path": 0.0}
# What the official code does, where that is not what the paper says or what one would expect.
_QUIRKS = {
    "schedule": "official", "order": "official", "decay_dist_token": True, "fusion": "logits",
    "pos_embed_resize": "official", "ema_decay": 0.99996, "crop_ratio": 0.875,
}  # fmt: skip

PAPER_RECIPES: Recipes = {
    "deit": (
        "DeiT-S distilled on ImageNet from RegNetY-16GF, hard labels on the distillation token (paper Table 3, row 6).",
        _SMALL,
    ),
    "deit-tiny": (
        "DeiT-Ti for 300 epochs without distillation.",
        _TABLE_9 | {"model": "deit_tiny_patch16_224"},
    ),
    "deit-small": (
        "DeiT-S for 300 epochs without distillation.",
        _TABLE_9 | {"model": "deit_small_patch16_224"},
    ),
    "deit-base": (
        "DeiT-B for 300 epochs without distillation: Table 3's first row, Table 8's default, and a teacher of Table 2.",
        _TABLE_9,
    ),
    "deit-base-soft": (
        'DeiT-B with soft distillation on its only token: "usual distillation", Table 3, row 2.',
        _TABLE_9 | _HARD | {"distill": "soft", "distill_on": "class", **SOFT["paper"]},
    ),
    "deit-base-hard": (
        "DeiT-B with hard distillation on its only token: Table 3, row 3.",
        _TABLE_9 | _HARD | {"distill_on": "class"},
    ),
    "deit-base-distilled": (
        "DeiT-B⚗: hard distillation on the distillation token. One training gives Table 3's last three rows.",
        _BASE,
    ),
    "deit-base-distilled-1000": ("DeiT-B⚗ for 1000 epochs (Figure 3, Table 5).", _BASE | {"epochs": 1000}),
    "official": (
        "`deit` with what the official code does, where that is not what the paper says or what one would expect.",
        _SMALL | _QUIRKS,
    ),
    "paper": (
        "`deit` by the paper's text, where the official code or we do otherwise.",
        _SMALL | {"fusion": "softmax", "decay_dist_token": False, "ema_decay": 0.0},
    ),
    "finetune-384": (
        "DeiT-B fine-tuned at 384 pixels, as released: in evaluation mode, so without stochastic depth.",
        _RELEASED,
    ),
    "finetune-384-distilled": (
        "DeiT-B⚗ fine-tuned at 384 pixels with its teacher, which sees the same 384 pixels; not in the released code.",
        _BASE | _FINETUNED,
    ),
    "finetune-320": ("`finetune-384` at 320 pixels (Table 10).", _RELEASED | {"image_size": 320}),
    "finetune-160": ("`finetune-384` at 160 pixels (Table 10).", _RELEASED | {"image_size": 160}),
    "finetune": (
        "DeiT-B fine-tuned on another data set (Table 7), with the settings published for CIFAR-10.",
        _TABLE_9 | {"weights": "timm", "epochs": 1000, "batch_size": 768, "lr": 5e-6, "min_lr": 1e-6, "erase": 0.0},
    ),
    "cifar10": (
        "DeiT-B on CIFAR-10 from scratch, at 224 pixels; 7200 epochs are as many images as 300 of ImageNet.",
        _TABLE_9 | {"epochs": 7200},
    ),
    **{
        f"teacher-{gigaflops}gf": (
            f"RegNetY-{gigaflops}GF, a teacher of Table 2, trained on ImageNet as DeiT is.",
            _TABLE_9 | {"model": f"regnety_{gigaflops:02}0", "drop_path": 0.0},
        )
        for gigaflops in (4, 8, 12, 16)
    },
}
