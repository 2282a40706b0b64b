"""The paper's trainings: their numbers are those of a table with sources, and each of them runs, made small."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deit_fast.train.prepare
from deit_fast import create_model
from deit_fast.config import Config, changes
from deit_fast.data import Share, TrainLoader
from deit_fast.model import VisionTransformer
from deit_fast.recipes.named import parse, recipe
from deit_fast.recipes.paper import PAPER_RECIPES
from deit_fast.run.checkpoint import newest
from deit_fast.train import train
from deit_fast.train.optimizer import create_optimizer, learning_rates
from deit_kernels import augment

TABLE = json.loads((Path(__file__).parent / "recipe_table.json").read_text())
SMALL = {"patch_size": 8, "width": 32, "depth": 2, "heads": 2}


def test_every_recipe_of_the_paper_is_in_the_table() -> None:
    assert TABLE["recipes"].keys() == PAPER_RECIPES.keys()


@pytest.mark.parametrize("name", PAPER_RECIPES)
def test_a_recipe_has_the_numbers_of_the_table(name: str) -> None:
    """Those that the table does not list decide nothing of the paper's: they are the trainer's defaults."""
    ours = recipe(name).identity()
    listed = TABLE["table_9"] | TABLE["recipes"][name]
    expected = Config().identity() | {"recipe": name} | {field: value for field, (value, _) in listed.items()}
    assert ours == expected
    assert all(source for _, source in listed.values())


def test_the_page_says_of_every_recipe_what_to_expect_and_in_how_many_hours() -> None:
    """A line of its tables has the recipes' names, top-1 and hours; `official`, `paper`: as `deit`."""
    text = PAGE.replace("`, `-", "`, `teacher-")  # teacher-4gf, -8gf
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `")]
    told = {name: cells for cells in lines for name in re.findall(r"`([a-z0-9-]+)`", cells[0])}
    assert told.keys() >= PAPER_RECIPES.keys()
    for name, (_, _, top1, source, hours) in ((name, told[name]) for name in PAPER_RECIPES):
        assert re.search(r"\d\d\.\d", top1) and re.search(r"Table|section", source), name
        assert re.search(r"\d", hours), name


def test_the_policy_of_table_9_is_the_augmentations_own() -> None:
    mean_std = (augment.Policy().mean, augment.Policy().std)
    assert recipe("deit-base").data.training_policy(mean_std) == augment.Policy.deit()


# The page


PAGE = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text()


def test_the_pages_commands_are_spelled_as_the_parser_knows_them() -> None:
    commands = re.findall(r"^python -m deit_fast\.train (.*)$", PAGE, flags=re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        parse(shlex.split(command), "").check()


def test_the_pages_flags_for_other_data_are_the_published_rates() -> None:
    """The scaled rate of each line is the one that its second column states."""
    lines = [line.split("|")[1:-1] for line in PAGE.splitlines() if "issues/" in line and line.startswith("|")]
    assert len(lines) == 5
    for name, settings, _, _, flags in lines:
        given = re.findall(r"`(.*)`", flags)
        config = parse(["--recipe", "finetune", "--data", "x", *(shlex.split(given[0]) if given else [])], "")
        config.check()
        stated = float(re.search(r"rate ([\d.e-]+)", settings)[1])
        rate = config.optim.lr if "before scaling" in settings else config.optim.lr * config.optim.batch_size / 512
        assert rate == pytest.approx(stated, rel=1e-3), name
        assert config.optim.min_lr < rate
        assert ("SGD" in settings) == (config.optim.optimizer == "sgd")
        assert config.optim.epochs == int(re.search(r"(\d+) epochs", settings)[1])


def test_the_page_names_every_recipe_and_no_other() -> None:
    names = {name for name in re.findall(r"`([a-z0-9-]+)`", PAGE) if not name.startswith("-")}
    names |= {f"teacher{name}" for name in re.findall(r"`(-\d+gf)`", PAGE)}
    assert PAPER_RECIPES.keys() <= names
    assert {name for name in names if name.startswith(("deit-", "finetune", "teacher-"))} <= PAPER_RECIPES.keys()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
def test_the_pages_python_runs(code: str) -> None:
    exec(compile(code, "recipes.md", "exec"), {})


# Made small


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    """Weights of the small model for 32 pixels and seven classes, distilled or not."""
    files = {}
    for distilled in (False, True):
        name = f"deit_tiny{'_distilled' if distilled else ''}_patch16_224"
        files[distilled] = str(tmp_path_factory.mktemp("weights") / "model.safetensors")
        save_file(create_model(name, image_size=32, classes=7, **SMALL).state_dict(), files[distilled])
    return files


def small(name: str, tiny: Config, pretrained: dict[bool, str]) -> Config:
    """One epoch of a recipe on 24 images, at a seventh of its resolution."""
    config = recipe(name)
    ours = "deit" in config.model.model
    return config.replace(
        data=tiny.data.data, out=tiny.run.out, epochs=1, warmup_epochs=0.1, batch_size=12, threads=1, log_every=1,
        image_size={160: 16, 224: 16, 320: 24, 384: 32}[config.data.image_size],
        order="grouped" if name == "official" else config.data.order,  # its epoch has a multiple of 256 images
        model=config.model.model if ours else "test_resnet",
        teacher=tiny.distill.teacher if config.distill.teacher else "",
        weights=pretrained["distilled" in config.model.model] if config.model.weights else "",
        **(SMALL if ours else {}),
    )  # fmt: skip


@pytest.mark.parametrize("name", PAPER_RECIPES)
def test_a_recipe_trains_when_it_is_made_small(name: str, tiny: Config, pretrained: dict[bool, str]) -> None:
    config = small(name, tiny, pretrained)
    scores = train(config).scores
    heads = {"cls", "dist", "fused", "softmax"} if "distilled" in config.model.model else {"cls"}
    assert scores["student"].keys() == heads
    assert (scores["ema"] is None) == (name == "paper")
    assert all(torch.tensor(head["loss"]).isfinite() for head in scores["student"].values())


@pytest.mark.parametrize(
    "flags",
    [
        "--optimizer sgd", "--rand-augment=", "--rand-augment original", "--mixup 0", "--cutmix 0",
        "--mixup 0 --cutmix 0", "--erase 0", "--drop-path 0", "--repeats 1", "--dropout 0.1",
    ],
)  # fmt: skip
def test_every_ablation_of_table_8_is_a_flag_that_runs(flags: str, tiny: Config, pretrained: dict[bool, str]) -> None:
    given = parse(["--recipe", "deit-base", "--data", tiny.data.data, *flags.split()], "")
    typed = {name: value for name, _, value in changes(recipe("deit-base").flat(), given.flat()) if name != "data"}
    assert typed
    config = small("deit-base", tiny, pretrained).replace(**typed)
    assert train(config).scores["student"]["cls"]["n"] == 15


# The official code's quirks


def test_official_the_schedule_is_late_and_by_the_epoch() -> None:
    rate = learning_rates(recipe("official").optim, epoch_steps=1251, peak=1e-3)
    assert rate(0) == rate(1251) == rate(2 * 1251 - 1) == 1e-6
    assert rate(6 * 1251) == pytest.approx(9.993e-4, rel=1e-4)
    smooth = learning_rates(recipe("paper").optim, epoch_steps=1251, peak=1e-3)
    assert smooth(1) > smooth(0) == 1e-6


@pytest.mark.parametrize(("name", "decayed"), [("official", True), ("paper", False)])
def test_official_the_distillation_token_is_decayed(name: str, decayed: bool) -> None:
    model = create_model("deit_tiny_distilled_patch16_224", **SMALL)
    config = recipe(name)
    groups = create_optimizer(config.optim, model, 1e-3).param_groups
    weight_decay = next(g["weight_decay"] for g in groups if any(p is model.dist_token for p in g["params"]))
    assert weight_decay == (0.05 if decayed else 0.0)


@pytest.mark.parametrize(
    ("name", "soft"), [("official", (0.5, 1.0, "numel")), ("paper", (0.1, 3.0, "batch")), ("deit", (None,) * 3)]
)
def test_official_soft_distillation_is_divided_by_rows_and_classes(name: str, soft: tuple) -> None:
    config = parse(["--recipe", name, "--data", "x", "--distill", "soft"], "")
    assert (config.distill.alpha, config.distill.tau, config.distill.kl_normalizer) == soft
    given = parse(["--recipe", name, "--data", "x", "--distill", "soft", "--alpha", "0.3"], "")
    assert given.distill.alpha == 0.3


def test_official_the_logits_are_averaged_and_in_the_paper_the_softmaxes(tiny: Config, pretrained) -> None:
    images = torch.randn(4, 3, 16, 16)
    for name in ("official", "paper"):
        config = small(name, tiny, pretrained)
        torch.manual_seed(0)
        model = deit_fast.train.prepare.classifier(config.model, config.data.image_size, 3).eval()
        assert isinstance(model, VisionTransformer)
        cls_logits, dist_logits = (2 * head for head in model.heads(images))
        mean = (cls_logits + dist_logits) / 4 if name == "official" else None
        if name == "paper":
            cls_logits, dist_logits = model.heads(images)
            mean = ((cls_logits.softmax(1) + dist_logits.softmax(1)) / 2).log()
        torch.testing.assert_close(model(images), mean)


def test_official_the_order_is_its_samplers_and_a_rank_is_mixed_with_its_mirror_image() -> None:
    config = recipe("official")
    mean_std = (augment.Policy().mean, augment.Policy().std)

    class Thousand:
        name, classes = "thousand", ["a", "b"]
        labels = torch.zeros(1000, dtype=torch.int64).numpy()

        def __len__(self) -> int:
            return 1000

    share = Share(1000, 64, config.data.repeats, config.data.order, rank=1, world_size=2)
    loader = TrainLoader(Thousand(), config.data.training_policy(mean_std), share, total_steps=4)
    assert share.steps_per_epoch == 768 // 64
    assert loader.mixing.mirrored and loader.mixing.group == 32
    assert loader.mixing.plan(0).partner_row.tolist() == list(range(31, -1, -1))


def test_official_the_class_token_starts_as_every_other_weight() -> None:
    torch.manual_seed(0)
    model = create_model("deit_base_distilled_patch16_224", depth=1)
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.1)  # today's timm: 1e-6


def test_the_last_epochs_headline_is_the_recipes_prediction(tiny: Config, pretrained, capsys) -> None:
    train(small("paper", tiny, pretrained))
    assert "· softmax " in capsys.readouterr().out
    assert newest(Path(tiny.run.out)).exists() and load_file(newest(Path(tiny.run.out)) / "model.safetensors")
