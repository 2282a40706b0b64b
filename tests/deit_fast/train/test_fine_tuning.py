"""Fine-tuning at another resolution: with its teacher nothing is lost, and what the official code does is an option."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from deit_fast import create_model
from deit_fast.config import Config
from deit_fast.recipes.named import recipe
from deit_fast.run.checkpoint import newest
from deit_fast.train import train
from deit_fast.train.__main__ import main
from deit_fast.weights.huggingface import to_huggingface
from deit_fast.weights.pretrained import resize_pos_embed
from tests.deit_fast.command import command_line

SMALL = {"image_size": 16, "patch_size": 8, "width": 32, "depth": 2, "heads": 2}


def weights(run: str | Path) -> dict[str, Tensor]:
    return load_file(newest(Path(run)) / "model.safetensors")


def frozen(tiny: Config, **changes) -> Config:
    """One step at a rate of nothing: what is left are the weights that training began with."""
    still = {"lr": 0.0, "min_lr": 0.0, "warmup_lr": 0.0, "warmup_epochs": 0.0, "epochs": 1, "batch_size": 24}
    return tiny.replace(**{**still, **changes})


@pytest.fixture
def start() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return create_model("deit_tiny_distilled_patch16_224", classes=3, **SMALL).state_dict()


@pytest.mark.parametrize("source", ["official", "timm", "huggingface", "huggingface folder", "run", "unfinished run"])
def test_training_starts_from_any_checkpoint(tiny: Config, start, tmp_path: Path, source: str) -> None:
    file = tmp_path / "weights.safetensors"
    if source == "official":
        file = tmp_path / "weights.pth"
        torch.save({"model": start}, file)
    elif source == "timm":
        save_file(start, file)
    elif source.startswith("huggingface"):
        save_file(to_huggingface(start), file)
        file = tmp_path if source.endswith("folder") else file
    else:
        first = tiny.replace(out=str(tmp_path / "first"), ema_decay=0.0)
        train(first)
        file, start = Path(first.run.out), weights(first.run.out)
        if source == "unfinished run":
            (file / "summary.json").unlink()
    train(frozen(tiny, weights=str(file)))
    for name, value in weights(tiny.run.out).items():
        assert torch.equal(value, start[name]), name


@pytest.mark.parametrize("resize", ["official", "timm"])
def test_another_resolution_resizes_the_position_embeddings_as_asked(tiny: Config, start, tmp_path, resize) -> None:
    save_file(start, tmp_path / "weights.safetensors")
    path = str(tmp_path / "weights.safetensors")
    train(frozen(tiny, weights=path, image_size=32, pos_embed_resize=resize))
    expected = resize_pos_embed(start["pos_embed"], 4, 2, resize)
    assert torch.equal(weights(tiny.run.out)["pos_embed"], expected)
    other = resize_pos_embed(start["pos_embed"], 4, 2, {"official": "timm", "timm": "official"}[resize])
    assert not torch.equal(expected, other)


def test_other_classes_start_with_new_heads_and_the_old_body(tiny: Config, tmp_path: Path) -> None:
    torch.manual_seed(3)
    start = create_model("deit_tiny_distilled_patch16_224", classes=7, **SMALL).state_dict()
    save_file(start, tmp_path / "weights.safetensors")
    train(frozen(tiny, weights=str(tmp_path / "weights.safetensors")))
    ours = weights(tiny.run.out)
    assert ours["head.weight"].shape == ours["head_dist.weight"].shape == (3, 32)
    assert all(torch.equal(value, start[name]) for name, value in ours.items() if not name.startswith("head"))


def test_evaluation_mode_trains_the_fused_prediction_as_the_official_fine_tuning_does(tiny: Config, start, tmp_path):
    """Both heads learn the labels through their mean, without a teacher, and nothing is dropped."""
    save_file(start, tmp_path / "weights.safetensors")
    released = {"distill": "none", "teacher": "", "train_mode": "eval", "drop_path": 0.0, "label_smoothing": 0.0}
    config = tiny.replace(
        weights=str(tmp_path / "weights.safetensors"), batch_size=24, epochs=1, warmup_epochs=0.0, **released
    )
    train(config)
    model = create_model("deit_tiny_distilled_patch16_224", classes=3, **SMALL)
    model.load_state_dict(start)
    from deit_fast.data import Share, TrainLoader, open_dataset
    from deit_kernels.augment import Policy

    dataset, _ = open_dataset(tiny.data.data)
    loader = TrainLoader(dataset, Policy(16), Share(len(dataset), 24), total_steps=1)
    batch = next(iter(loader))
    cls_logits, dist_logits = model.heads(batch.images)
    expected = F.cross_entropy((cls_logits + dist_logits) / 2, batch.labels)
    lines = (Path(tiny.run.out) / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["loss"] == pytest.approx(expected.item(), rel=1e-5)
    moved = weights(tiny.run.out)
    for name in ("head.weight", "head_dist.weight", "dist_token"):
        assert not torch.equal(moved[name], start[name])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train_mode": "eval"}, "--train-mode eval drops nothing: add --drop-path 0"),
        ({"train_mode": "eval", "drop_path": 0.0}, "nothing can be distilled .*NotImplementedError.* --distill none"),
        ({"image_size": 20}, "image_size 20 is not a multiple of patch_size 8: use 16"),
        ({"width": 64}, "they have 32 channels, .* the model has 64 channels, .*: type --width 32"),
        ({"model": "deit_tiny_patch16_224", "distill_on": "class"}, "type a --model with _distilled in its name"),
        (
            {"model": "test_vit", **dict.fromkeys(("patch_size", "width", "depth", "heads"), 0)},
            "these weights do not fit",
        ),
        ({"weights": "runs/nothing"}, "there is no file or folder runs/nothing for --weights: check the path"),
        ({"weights": "EMPTY"}, "holds no model: expected a run"),
        ({"pos_embed_resize": "bicubic"}, "pos-embed-resize"),
    ],
)
def test_what_cannot_be_fine_tuned_is_refused_with_a_sentence(tiny, start, tmp_path, capsys, changes, says) -> None:
    save_file(start, tmp_path / "weights.safetensors")
    (tmp_path / "empty").mkdir()
    if changes.get("weights") == "EMPTY":
        changes = {"weights": str(tmp_path / "empty")}
    config = tiny.replace(**{"weights": str(tmp_path / "weights.safetensors"), **changes})
    try:
        code = main(command_line(config))
    except SystemExit as exit:  # the parser's own
        code = exit.code
    captured = capsys.readouterr()
    assert code == 2
    assert re.search(says, (captured.err + captured.out).replace("\n", " "))
    assert not Path(tiny.run.out).exists()


def top1(run: Path) -> float:
    """Of the fused heads: the moving average where it is better, as fine-tuning starts from it."""
    scores = json.loads((run / "summary.json").read_text())
    return max(scores[which]["fused"]["top1"] for which in ("student", "ema"))


@pytest.fixture(scope="module")
def low_resolution(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, Path]]:
    """(teacher trained at 96 pixels, student of a seed trained at 64): each trained once."""
    folder = tmp_path_factory.mktemp("photos")
    teacher = recipe("demo-teacher").replace(out=str(folder / "teacher"), in_memory=True)

    @cache
    def trained(seed: int) -> tuple[Path, Path]:
        train(teacher)
        student = recipe("demo").replace(
            teacher=teacher.run.out, image_size=64, seed=seed, in_memory=True, out=str(folder / f"{seed}")
        )
        return Path(teacher.run.out), train(student).run

    return trained


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["official", "timm"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_distilled_fine_tuning_from_64_to_96_pixels_loses_no_point(low_resolution, resize, seed, tmp_path) -> None:
    """As `finetune-384-distilled`: train mode, the teacher sees the larger images, a small constant rate."""
    teacher, before = low_resolution(seed)
    after = recipe("demo").replace(
        teacher=str(teacher), weights=str(before), pos_embed_resize=resize, seed=seed, in_memory=True,
        epochs=2, lr=1e-3, min_lr=1e-3 * 32 / 512, warmup_epochs=0.0, weight_decay=1e-8, out=str(tmp_path / "after"),
    )  # fmt: skip
    train(after)
    scores = top1(before), top1(tmp_path / "after")
    print(f"seed {seed}, {resize}: {scores[0]:.1f} % at 64 pixels, {scores[1]:.1f} % at 96")
    assert scores[1] >= scores[0] - 1.0
