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


def test_the_page_has_the_numbers_of_every_recipe() -> None:
    """Its tables: side, rate, stochastic depth and hours are the recipe's, top-1 and ImageNet-V2 are the README's."""
    lines = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in PAGE.splitlines()]
    told = {cells[0]: cells[1:] for cells in lines if cells and cells[0] in DEIT3_RECIPES}
    assert told.keys() == DEIT3_RECIPES.keys()
    for name, cells in told.items():
        config = recipe(name)
        if name.endswith("-400"):
            assert float(cells[0]) == config.model.drop_path
            assert re.fullmatch(r"\d\d\.\d|no number was published", cells[1])
        else:
            numbers = config.data.image_size, config.optim.lr, config.model.drop_path
            assert tuple(map(float, cells[:3])) == numbers, name
            assert float(cells[5]) > 0
    readme = {"small": 81.4, "medium": 83.0, "base": 83.8, "large": 84.9, "huge": 85.2}
    readme |= {"small-finetune-384": 83.4, "base-finetune-384": 85.0, "large-finetune-384": 85.8}
    assert all(float(told[f"deit3-{name}"][3]) == top1 for name, top1 in readme.items())
    assert "accuracy is promised" in PAGE and told["deit3-small-distilled"][3] == "not known"


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
