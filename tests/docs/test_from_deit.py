"""docs/from-deit.md: every flag and model of the official code has its counterpart there, or the reason for none.

The names are those of facebookresearch/deit at 7e160fe: what its main.py gives to its parser (75 flags, one of which
has two names), and what its models.py and models_v2.py, which main.py imports, register with timm.
"""

import re
from pathlib import Path

import pytest
import timm

from deit_fast.model import CONFIGS

PAGE = (Path(__file__).parents[2] / "docs" / "from-deit.md").read_text()
FLAGS = """
    batch-size epochs bce-loss unscale-lr model input-size drop drop-path model-ema no-model-ema model-ema-decay
    model-ema-force-cpu opt opt-eps opt-betas clip-grad momentum weight-decay sched lr lr-noise lr-noise-pct
    lr-noise-std warmup-lr min-lr decay-epochs warmup-epochs cooldown-epochs patience-epochs decay-rate dr
    color-jitter aa smoothing
    train-interpolation repeated-aug no-repeated-aug train-mode no-train-mode ThreeAugment src reprob remode recount
    resplit mixup cutmix cutmix-minmax mixup-prob mixup-switch-prob mixup-mode teacher-model teacher-path
    distillation-type distillation-alpha distillation-tau cosub finetune attn-only data-path data-set inat-category
    output_dir device seed resume start_epoch eval eval-crop-ratio dist-eval num_workers pin-mem no-pin-mem distributed
    world_size dist_url
""".split()
MODELS = """
    deit_tiny_patch16_224 deit_small_patch16_224 deit_base_patch16_224 deit_tiny_distilled_patch16_224
    deit_small_distilled_patch16_224 deit_base_distilled_patch16_224 deit_base_patch16_384
    deit_base_distilled_patch16_384
    deit_tiny_patch16_LS deit_small_patch16_LS deit_medium_patch16_LS deit_base_patch16_LS deit_large_patch16_LS
    deit_huge_patch14_LS deit_huge_patch14_52_LS deit_huge_patch14_26x2_LS deit_Giant_48x2_patch14_LS
    deit_giant_40x2_patch14_LS deit_Giant_48_patch14_LS deit_giant_40_patch14_LS deit_small_patch16_36_LS
    deit_small_patch16_36 deit_small_patch16_18x2_LS deit_small_patch16_18x2 deit_base_patch16_18x2_LS
    deit_base_patch16_18x2 deit_base_patch16_36x1_LS deit_base_patch16_36x1
""".split()


def rows(section: str) -> list[tuple[list[str], str, str]]:
    """(names of theirs, counterpart, remark) of the rows of a section's table."""
    text = re.search(rf"^## {section}\n(.*?)^## ", PAGE, flags=re.MULTILINE | re.DOTALL)[1]
    cells = re.findall(r"^\| (`(?!main.py)[^|]*) \|([^|]*)\|([^|]*)\|$", text, flags=re.MULTILINE)
    return [(re.findall(r"`(?:--)?([\w-]+)", first), *map(str.strip, others)) for first, *others in cells]


@pytest.mark.parametrize(("section", "names", "count"), [("Flags", FLAGS, 76), ("Models", MODELS, 28)])
def test_every_name_has_its_row_and_its_counterpart_or_a_reason_for_none(
    section: str, names: list[str], count: int
) -> None:
    table = rows(section)
    listed = [name for theirs, _, _ in table for name in theirs]
    assert len(set(names)) == count and set(listed) == set(names)
    assert set(listed) - {"opt"} == {name for name in listed if listed.count(name) == 1}
    for theirs, counterpart, remark in table:
        assert counterpart, theirs
        assert counterpart != "none" or remark, f"{theirs}: none, because?"


def test_the_models_that_are_named_instead_exist() -> None:
    for theirs, counterpart, _ in rows("Models"):
        if counterpart == "the same":
            assert set(theirs) <= CONFIGS.keys()
        elif counterpart != "none":
            ours = re.findall(r"`(\w+)`", counterpart)
            assert len(ours) == len(theirs)
            assert all(timm.is_model(name) for name in ours)


@pytest.mark.parametrize("said", ["leaves the distillation term", "its loss is the mean over the images"])
def test_what_differs_in_the_loss_is_said(said: str) -> None:
    assert said in " ".join(PAGE.split())
