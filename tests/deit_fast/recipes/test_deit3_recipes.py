"""The trainings of DeiT III: their numbers are those of a table with sources, and each of them runs, made small."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deit_fast import create_model
from deit_fast.config import Config
from deit_fast.recipes.deit3 import DEIT3_RECIPES
from deit_fast.recipes.named import parse, recipe
from deit_fast.run import report
from deit_fast.train import train
from deit_kernels import augment

TABLE = json.loads((Path(__file__).parent / "deit3_table.json").read_text())
SMALL = {"width": 32, "depth": 2, "heads": 2}
PAGE = (Path(__file__).parents[3] / "docs" / "deit3.md").read_text()


def test_every_recipe_is_in_the_table() -> None:
    assert TABLE["recipes"].keys() == DEIT3_RECIPES.keys()


@pytest.mark.parametrize("name", DEIT3_RECIPES)
def test_a_recipe_has_the_numbers_of_the_table(name: str) -> None:
    """Those that the table does not list decide nothing of DeiT III's: they are the trainer's defaults."""
    own = dict(TABLE["recipes"][name])
    listed = TABLE[own.pop("base")] | own
    expected = Config().deciding() | {"recipe": name} | {field: value for field, (value, _) in listed.items()}
    assert recipe(name).deciding() == expected
    assert all(source for _, source in listed.values())


@pytest.mark.parametrize("name", DEIT3_RECIPES)
def test_a_docstring_says_what_to_type_and_to_expect(name: str) -> None:
    text = DEIT3_RECIPES[name].__doc__
    command = re.search(r"python -m deit_fast\.train (.*)", text)[1].split()
    config = parse(command, "")
    assert config.recipe == name
    config.check()
    assert re.search(r"Top-1( \d\d\.\d.*\((official README|naver-ai)|: (no number was published|not known))", text)
    assert re.search(r"Time: .*\(estimate\)", text)
    assert "measured" not in text  # nothing is, yet


def test_the_accuracies_are_the_papers() -> None:
    text = {name: function.__doc__ for name, function in DEIT3_RECIPES.items()}
    for size, top1 in {"small": 81.4, "medium": 83.0, "base": 83.8, "large": 84.9, "huge": 85.2}.items():
        assert f"Top-1 {top1}, on ImageNet-V2" in text[f"deit3-{size}"]
    for size, top1 in {"small": 83.4, "base": 85.0, "large": 85.8}.items():
        assert f"Top-1 {top1}, on ImageNet-V2" in text[f"deit3-{size}-finetune-384"]
    assert "nothing is promised" in text["deit3-small-distilled"]


def test_the_policy_is_the_augmentations_own() -> None:
    mean_std = (augment.Policy().mean, augment.Policy().std)
    assert recipe("deit3-small").data.training_policy(mean_std) == augment.Policy.deit3()
    simple = recipe("deit3-small").replace(simple_random_crop=True)
    assert simple.data.training_policy(mean_std) == augment.Policy.deit3(src=True)


def test_the_page_names_every_recipe_and_no_other() -> None:
    names = set(re.findall(r"`(deit3-[a-z0-9-]+)`", PAGE))
    assert names == DEIT3_RECIPES.keys()


def test_another_augmentation_takes_the_place_of_3_augment_with_its_jitter() -> None:
    command = ["--recipe", "deit3-small", "--data", "x", "--rand-augment"]
    config = parse([*command, "rand-m9-mstd0.5-inc1"], "")
    config.check()
    assert config.data.color_jitter is None
    with pytest.raises(ValueError, match=r"--color-jitter beside --rand-augment rand-m9-mstd0\.5-inc1: "):
        parse([*command, "rand-m9-mstd0.5-inc1", "--color-jitter", "0.2"], "").check()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--bce-loss", "type --label-smoothing 0, or --bce-target-thresh None"),
        ("--bce-sum", "belong to --bce-loss: leave them out, or type that"),
        ("--bce-target-thresh 0.2", "belong to --bce-loss"),
    ],
)
def test_flags_of_the_loss_that_do_not_go_together_are_refused(flags: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(["--data", "x", "--recipe", "deit-small", *flags.split()], "").check()


def test_targets_stay_as_they_are_without_a_threshold() -> None:
    config = parse(["--data", "x", "--recipe", "deit-small", "--bce-loss", "--bce-target-thresh", "None"], "")
    config.check()
    assert config.distill.bce_target_thresh is None and config.distill.label_smoothing == 0.1


# Made small


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Weights of the small models for 32 pixels and seven classes, by patch size."""
    files = {}
    for patch in (7, 8):
        files[patch] = str(tmp_path_factory.mktemp("weights") / "model.safetensors")
        model = create_model("deit3_small_patch16_224", image_size=4 * patch, patch_size=patch, classes=7, **SMALL)
        save_file(model.state_dict(), files[patch])
    return files


@pytest.mark.parametrize("name", DEIT3_RECIPES)
def test_a_recipe_trains_when_it_is_made_small(name: str, tiny: Config, pretrained: dict[int, str]) -> None:
    config = recipe(name)
    patch = 7 if "huge" in name else 8
    small = config.replace(
        data=tiny.data.data, out=tiny.run.out, epochs=1, warmup_epochs=0.1, batch_size=12, threads=1, log_every=1,
        image_size={154: 2, 192: 2, 224: 3, 384: 5}[config.data.image_size] * patch, patch_size=patch,
        teacher=tiny.distill.teacher if config.distill.teacher else "",
        weights=pretrained[patch] if config.model.weights else "", precision="fp32", **SMALL,
    )  # fmt: skip
    scores = train(small).scores
    heads = {"cls", "dist", "fused", "softmax"} if "distilled" in config.model.model else {"cls"}
    assert scores["student"].keys() == scores["ema"].keys() == heads
    assert all(torch.tensor(head["loss"]).isfinite() for head in scores["student"].values())
