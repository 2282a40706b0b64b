"""Several ranks: the same result for every number of them, and one end for all."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deit_fast import checkpoint
from deit_fast.config import Config
from deit_fast.step import TrainingStep
from deit_fast.train import main
from tests.deit_fast.command import command_line
from tests.deit_fast.conftest import write_images
from tests.deit_fast.world import world

BATCH = 48  # rows of a step: 1, 2, 3, 4 and 8 ranks share them, in whole pairs to mix


def commanded(rank: int, config: Config, *others: Config) -> int:
    """Each rank's own command: those of `others` from rank 1 on."""
    return main(command_line((config, *others)[min(rank, len(others))]))


def recorded(rank: int, config: Config) -> int:
    """Train, and write down what every step was given: step, place, and digests of the pixels and the labels."""
    call, lines = TrainingStep.__call__, []

    def observe(self: TrainingStep, batch, lr):
        for row, place in enumerate(batch.positions.tolist()):
            pixels = hashlib.sha256(batch.images[row].numpy().tobytes()).hexdigest()
            lines.append([batch.step, place, int(batch.samples[row]), int(batch.labels[row]), pixels])
        return call(self, batch, lr)

    TrainingStep.__call__ = observe
    code = main(command_line(config))
    Path(config.out, f"seen_{rank}.json").write_text(json.dumps(lines))
    return code


@dataclasses.dataclass
class Run:
    """What a run of some ranks left."""

    rows: list[dict]
    seen: list
    summary: dict
    weights: dict[str, torch.Tensor]
    printed: list[str]


def train_with(ranks: int, config: Config, folder: Path) -> Run:
    config = dataclasses.replace(config, out=str(folder / f"run{ranks}"))
    with world(ranks, folder / f"printed{ranks}", recorded, config) as running:
        codes = running.wait()
        printed = [running.printed(rank) for rank in range(ranks)]
    assert codes == [0] * ranks, printed
    run = Path(config.out)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = sorted(row for rank in range(ranks) for row in json.loads((run / f"seen_{rank}.json").read_text()))
    weights = {which: load_file(checkpoint.newest(run) / f"{which}.safetensors") for which in ("model", "ema")}
    return Run(rows, seen, json.loads((run / "summary.json").read_text()), weights, printed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def config(folder: Path, teachers: Path) -> Config:
    """Two epochs of two steps over 96 images, of which three are unreadable; all stages of augmentation."""
    data = write_images(folder / "data", train=32)
    for name in ("class0/3.png", "class0/11.png", "class2/5.png"):
        (data / "train" / name).write_bytes(b"no image")
    (data / "val" / "class1" / "2.png").write_bytes(b"no image")
    return Config(
        recipe="deit", data=str(data), image_size=16, model="deit_tiny_distilled_patch16_224", patch_size=8, width=32,
        depth=2, heads=2, drop_path=0.3, rand_augment="rand-m9-mstd0.5-inc1", erase=0.5, mixup=0.8, cutmix=1.0,
        distill="soft", alpha=0.5, tau=2.0, kl_normalizer="batch", teacher="tiny_teachers:three_classes",
        epochs=2, warmup_epochs=0.5, batch_size=BATCH, lr=0.02, ema_decay=0.9, log_every=1, threads=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(config: Config, folder: Path, teachers: Path) -> Callable[[int], Run]:
    """The run of so many ranks, made once."""
    done: dict[int, Run] = {}
    sys.path.insert(0, str(teachers))  # the ranks get this path

    def run(ranks: int) -> Run:
        if ranks not in done:
            done[ranks] = train_with(ranks, config, folder)
        return done[ranks]

    yield run
    sys.path.remove(str(teachers))


WORLDS = [2, 3, 4, 8]


@pytest.mark.parametrize("ranks", WORLDS)
def test_the_global_batch_is_the_same_to_the_bit(runs, ranks: int) -> None:
    alone = runs(1)
    assert len(alone.seen) == 4 * BATCH
    assert len({line[4] for line in alone.seen}) > 150  # different pixels, or equal digests would show nothing
    assert runs(ranks).seen == alone.seen


@pytest.mark.parametrize("ranks", WORLDS)
def test_losses_and_weights_are_the_same_within_rounding(runs, ranks: int) -> None:
    # The ranks do not have equally many unreadable images: a mean of the ranks' means would be off by per cents.
    alone, several = runs(1), runs(ranks)
    ignored = [(step, place * ranks // BATCH) for step, place, _, label, _ in alone.seen if label < 0]
    assert len(ignored) == 12 and len({ignored.count((0, rank)) for rank in range(ranks)}) > 1
    for key in ("loss", "label", "distillation"):
        assert [row[key] for row in several.rows if key in row] == pytest.approx(
            [row[key] for row in alone.rows if key in row], rel=2e-4
        )
    for which, tensors in alone.weights.items():
        for name, value in tensors.items():
            torch.testing.assert_close(several.weights[which][name], value, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("ranks", WORLDS)
def test_evaluation_counts_every_image_once(runs, ranks: int) -> None:
    alone, several = runs(1).summary, runs(ranks).summary
    for which in ("student", "ema"):
        for head, scores in several[which].items():
            assert scores["n"] == alone[which][head]["n"] == 14
            assert scores["loss"] == pytest.approx(alone[which][head]["loss"], rel=1e-3)


def test_rank_0_prints_and_each_bad_image_is_named_by_who_met_it(runs) -> None:
    printed = runs(3).printed
    assert "top-1 on 14 validation images" in printed[0]
    assert "4 unreadable images were skipped" in printed[0]
    for others in printed[1:]:
        assert not [line for line in others.splitlines() if not line.startswith("warning: skipped an unreadable image")]
    named = [line for text in printed for line in text.splitlines() if line.startswith("warning: skipped")]
    # A training image that two ranks show in different epochs is named by both.
    assert {line.rpartition("/")[2].partition(":")[0] for line in named} == {"3.png", "11.png", "5.png", "2.png"}
