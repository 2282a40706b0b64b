"""What every field of the configuration means: to the run's identity, other ranks, teacher recipes and label caches."""

import dataclasses
import json
import typing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deit_fast.config import PARTS, Config, Flags, difference, fields_where
from deit_fast.data.sources.dataset import Dataset
from deit_fast.model import IMAGENET_NORMALISATION
from deit_fast.ranks import meeting
from deit_fast.teacher import labels
from deit_fast.teacher.load import recipe_config
from deit_kernels.augment import Policy
from tests.deit_fast.data.memory_dataset import MemoryDataset

# i: identifies the run; r: must be the same on all ranks; t: a teacher recipe takes it over; k: decides cached labels;
# e: decides the pixels of evaluation (weights/test_preprocessing.py).
MEANING = {
    "recipe": "ir", "data": "irte", "image_size": "irtke", "crop_scale": "irtk", "flip": "irtk", "rand_augment": "irk",
    "simple_random_crop": "irtk", "color_jitter": "irk",
    "erase": "irk", "mixup": "irk", "cutmix": "irk", "mix_prob": "irk", "mix_switch_prob": "irk", "crop_ratio": "irte",
    "repeats": "irk", "order": "irtk", "exif_orientation": "irtke", "in_memory": "t", "bad_images": "irt",
    "threads": "t", "model": "ire", "weights": "ir", "pos_embed_resize": "ir", "patch_size": "ir", "width": "ir",
    "depth": "ir", "heads": "ir", "drop_path": "ir", "dropout": "ir", "fusion": "ir", "train_mode": "ir",
    "distill": "irk", "distill_on": "ir", "teacher": "irk", "teacher_model": "irk", "teacher_cache": "r",
    "teacher_top_k": "irk", "teacher_precision": "irk", "teacher_layout": "r", "alpha": "ir", "tau": "irk",
    "kl_normalizer": "ir", "label_smoothing": "ir", "class_weights": "ir",
    "bce_loss": "ir",
    "bce_sum": "ir", "bce_target_thresh": "ir", "epochs": "ir", "batch_size": "irtk", "micro_batch": "rt",
    "optimizer": "ir", "lr": "ir", "warmup_epochs": "ir", "warmup_lr": "ir", "min_lr": "ir", "schedule": "ir",
    "unscale_lr": "ir", "layer_decay": "ir",
    "weight_decay": "ir", "decay_dist_token": "ir", "ema_decay": "ir", "precision": "irt", "compile": "ir",
    "compile_mode": "r",
    "seed": "ir", "data_seed": "irtk", "out": "r", "fresh": "r", "dry_run": "r", "gpus": "t", "profile": "r",
    "log_every": "r", "report": "r", "eval_every": "r", "skip_limit": "r", "save_every": "r", "keep": "r",
}  # fmt: skip
KEY = ["data_seed", "batch_size", "repeats", "order", "exif_orientation", "image_size"]
CPU = torch.device("cpu")
TYPES = {name: kind for part in (Flags, *PARTS.values()) for name, kind in typing.get_type_hints(part).items()}


@pytest.fixture
def base(tmp_path: Path) -> Config:
    """A configuration in which every field matters: soft distillation from a weights file, mixing, every stage."""
    (tmp_path / "teacher.pth").write_bytes(b"weights")
    (tmp_path / "other.pth").write_bytes(b"other weights")
    return Config(
        data="/flowers", rand_augment="rand-m9-mstd0.5-inc1-n1", erase=0.25, mixup=0.8, cutmix=1.0, mix_prob=0.5,
        distill="soft", teacher=str(tmp_path / "teacher.pth"), teacher_top_k=3, alpha=0.5, tau=3.0,
        kl_normalizer="batch",
    )  # fmt: skip


@pytest.fixture
def images() -> Dataset:
    return MemoryDataset(3)


def changed(config: Config, name: str) -> Config:
    """The configuration with another allowed value of a field."""
    value, kind = config.flat()[name], TYPES[name]
    own = {
        "rand_augment": "rand-m5-mstd0.5-inc1-n1", "color_jitter": 0.2,
        "teacher": str(Path(config.distill.teacher).with_name("other.pth")),
        "crop_scale": (0.2, 0.9), "teacher_precision": "bf16",
    }  # fmt: skip
    if name in own:
        other: object = own[name]
    elif choices := [choice for part in (kind, *typing.get_args(kind)) for choice in _choices(part)]:
        other = next(choice for choice in choices if choice not in (value, "none"))
    elif isinstance(value, bool):
        other = not value
    elif isinstance(value, str):
        other = value + "x"
    else:
        other = value + 1 if isinstance(value, int) else value * 0.75 or 0.25
    assert other != value
    return config.replace(**{name: other})


def _choices(kind: object) -> tuple[object, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def test_the_table_has_every_field() -> None:
    assert MEANING.keys() == Config().flat().keys()


@pytest.mark.parametrize("name", MEANING)
def test_a_field_identifies_the_run_or_does_not(base: Config, name: str) -> None:
    identifies = "i" in MEANING[name]
    other = changed(base, name)
    assert (base.identity() != other.identity()) == identifies == (name in {**base.identity(), **other.identity()})
    if name != "out":
        assert (base.run_folder() != other.run_folder()) == identifies


@pytest.mark.parametrize("name", MEANING)
def test_a_field_is_the_same_on_all_ranks_or_a_machines_own(base: Config, name: str) -> None:
    own, other = (meeting.introduce(config.agreed(), config.check, CPU, None) for config in (base, changed(base, name)))
    other = dataclasses.replace(other, problem=None)
    problem = meeting.find_problem([own, other])
    assert (problem is not None and f"--{name.replace('_', '-')} " in problem) == ("r" in MEANING[name])
    assert (problem is None) == ("r" not in MEANING[name])


@pytest.mark.parametrize("name", MEANING)
def test_a_teacher_recipe_takes_a_field_over_or_has_its_own(base: Config, name: str) -> None:
    student = base.replace(teacher="recipe:digits-teacher")
    asked = student if name == "teacher" else changed(student, name)
    assert asked.distill.teacher == student.distill.teacher
    before, after = recipe_config(student).flat()[name], recipe_config(asked).flat()[name]
    taken_over = "t" in MEANING[name]
    if taken_over:
        assert (before, after) == (student.flat()[name], asked.flat()[name])
    elif name != "out":  # which has the student's name
        assert before == after


@pytest.mark.parametrize("name", MEANING)
def test_a_field_decides_cached_labels_or_does_not(base: Config, images: Dataset, name: str) -> None:
    before, after = key(base, images), key(changed(base, name), images)
    assert (before != after) == ("k" in MEANING[name])


def key(config: Config, images: Dataset) -> dict:
    policy, dtype = (
        config.data.training_policy(IMAGENET_NORMALISATION),
        labels._dtype(config.distill.teacher_precision, CPU),
    )
    share = SimpleNamespace(world_size=1)
    data = SimpleNamespace(train_set=images, share=share, config=config.data, optim=config.optim)
    return labels.cache_settings(config.distill, config.distill.teacher, dtype, data, policy)


def test_a_cache_s_settings_keep_their_bytes(base: Config, images: Dataset) -> None:
    written = list(json.loads(json.dumps(key(base, images))))
    assert written == ["labels", "teacher", "teacher_precision", "data", "policy", *KEY, "noise"]
    assert list(key(base.replace(order="official"), images)) == [*written, "processes"]
    assert list(key(base.replace(erase=0.0), images)) == written[:-1]


def test_run_folders_keep_their_names() -> None:
    assert Config(data="/imagenet").run_folder() == Path("runs/deit-deit_small_distilled_patch16_224-295bb8e3")


def test_a_flag_of_a_later_version_renames_no_run_until_it_is_used(tmp_path: Path) -> None:
    config = Config(data="/imagenet")
    assert not fields_where("later").keys() & config.identity().keys()
    assert fields_where("later").keys() <= config.deciding().keys()
    written = {name: value for name, value in config.flat().items() if name not in fields_where("later")}
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert Config.from_json(tmp_path / "config.json") == config  # an older run's folder
    used = config.replace(simple_random_crop=True)
    assert used.run_folder() != config.run_folder()
    assert difference(config, used) == ["--simple-random-crop False -> True"]


def test_colour_jitter_goes_with_3_augment_unless_another_is_given() -> None:
    def jitter(**changes: object) -> float:
        return Config(data="/imagenet", **changes).data.training_policy(IMAGENET_NORMALISATION).color_jitter

    assert (jitter(), jitter(rand_augment="3a"), jitter(rand_augment="rand-m9")) == (0.0, 0.3, 0.0)
    assert (jitter(color_jitter=0.4), jitter(rand_augment="3a", color_jitter=0.0)) == (0.4, 0.0)
    policy = Config(rand_augment="3a", simple_random_crop=True, image_size=192, mixup=0.8, cutmix=1.0)
    assert policy.data.training_policy(IMAGENET_NORMALISATION) == Policy.deit3(192, src=True)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rand_augment": "4a"}, '--rand-augment: \'4a\' is unknown: type "rand-m9-mstd0.5-inc1", "3a"'),
        ({"rand_augment": "rand-m9", "color_jitter": 0.3}, "--color-jitter beside --rand-augment rand-m9: .* 1 op"),
        (
            {"simple_random_crop": True, "crop_scale": (0.5, 1.0)},
            "--crop-scale is 0.5 1, but .* add --crop-scale 0.08 1, the default, or leave",
        ),
    ],
)
def test_ops_that_do_not_go_together_are_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Config(data="/imagenet", **changes).check()


@pytest.mark.parametrize("name", fields_where("span"))
def test_every_range_is_kept_at_both_ends(base: Config, name: str) -> None:
    low, high = fields_where("span")[name]
    for value in (low - 1e-6, high + 1, float("nan")):
        with pytest.raises(ValueError, match=rf"^--{name.replace('_', '-')} lies between {low} and {high}, got"):
            base.replace(**{name: value}).check()
