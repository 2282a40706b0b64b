"""A run of the trainer beside the official training on genuine timm 0.3.2, which pip fetches into a folder of its own.

Same images, order, starting weights, rates, losses, weights, moving average and scores, for several epochs. Where there
is no network, and timm cannot be fetched, the tests are skipped with pip's reason.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from deit_fast import create_model
from deit_fast.config import Config
from deit_fast.data.mixing import Mixing
from deit_fast.data.order import Share
from deit_fast.model import IMAGENET_NORMALISATION
from deit_fast.run import checkpoint
from deit_fast.train import train
from deit_fast.train.optimizer import parameter_groups

pytestmark = pytest.mark.slow
SIDE, CLASSES = 40, 3
CASES = {
    "labels": {"distill": "none"},
    "labels, mixed": {"distill": "none", "mixup": 0.8, "cutmix": 1.0},
    "hard": {"distill": "hard"},
    "hard, mixed": {"distill": "hard", "mixup": 0.8, "cutmix": 1.0},
    "soft": {"distill": "soft", "alpha": 0.5, "tau": 2.0, "kl_normalizer": "numel"},
    "sgd": {"distill": "none", "optimizer": "sgd"},
}


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with timm 0.3.2 and nothing else."""
    folder = tmp_path_factory.mktemp("timm")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), "timm==0.3.2"]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"timm 0.3.2 could not be fetched: {installed.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of exactly the training's size, so that a crop of the whole area leaves nothing to chance."""
    root = tmp_path_factory.mktemp("squares")
    generator = np.random.default_rng(0)
    colours = generator.integers(60, 200, (CLASSES, 3))
    for split, count in (("train", 15), ("val", 7)):
        for label in range(CLASSES):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = colours[label] + generator.normal(0, 40, (SIDE, SIDE, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:02}.png")
    return root


def configuration(data: Path, out: Path, changes: dict) -> Config:
    return Config(
        data=str(data), out=str(out), image_size=SIDE, crop_scale=(1.0, 1.0), flip=0.0, order="official",
        schedule="official", patch_size=8, width=48, depth=3, heads=3, epochs=8, warmup_epochs=2, batch_size=10,
        lr=0.05, ema_decay=0.9, log_every=1, threads=1, precision="fp32",
        **{
            "model": "deit_tiny_patch16_224" if changes["distill"] == "none" else "deit_tiny_distilled_patch16_224",
            "teacher": "" if changes["distill"] == "none" else "tiny_teachers:three_classes",
            **changes,
        },
    )  # fmt: skip


def official(config: Config, share: Share, genuine: Path, teachers: Path, folder: Path) -> dict:
    """What the official training leaves; it draws nothing at random but its order and its starting weights."""
    mixing = Mixing.of_share(config.data.training_policy(IMAGENET_NORMALISATION), share)
    mixes = []
    for step in range(config.optim.epochs * share.steps_per_epoch) if mixing else ():
        row = mixing.plan(step).table[0]
        mixes.append([("none", "mixup", "cutmix")[row["mode"]], float(row["lam"]), row["box"].tolist()])
    optim, distill, sizes = config.optim, config.distill, config.model
    given = {
        "data": config.data.data, "seed": optim.seed, "epochs": optim.epochs, "batch_size": optim.batch_size,
        "warmup_epochs": int(optim.warmup_epochs), "peak_lr": optim.lr * optim.batch_size / 512,
        "optimizer": optim.optimizer, "ema_decay": optim.ema_decay, "smoothing": distill.label_smoothing,
        "distill": distill.distill, "alpha": 0.5 if distill.alpha is None else distill.alpha, "tau": distill.tau,
        "teacher": distill.teacher, "mixes": mixes,
        "sizes": {
            "img_size": SIDE, "patch_size": sizes.patch_size, "embed_dim": sizes.width, "depth": sizes.depth,
            "num_heads": sizes.heads, "num_classes": CLASSES,
        },
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(given))
    script = Path(__file__).with_name("on_timm_0_3_2.py")
    environment = {**os.environ, "PYTHONPATH": f"{genuine}{os.pathsep}{teachers}"}
    command = [sys.executable, "-W", "ignore", str(script), str(folder / "settings.json"), str(folder / "result.pt")]
    subprocess.run(command, env=environment, check=True)
    return torch.load(folder / "result.pt")


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_the_official_training(
    case: str, genuine: Path, squares: Path, teachers: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(teachers)
    config = configuration(squares, tmp_path / "run", CASES[case])
    share = Share(CLASSES * 15, config.optim.batch_size, order="official")
    theirs = official(config, share, genuine, teachers, tmp_path)
    assert theirs["version"] == "0.3.2"

    torch.manual_seed(config.optim.seed)
    sizes = {"image_size": SIDE, "patch_size": 8, "width": 48, "depth": 3, "heads": 3, "classes": CLASSES}
    model = create_model(config.model.model, **sizes)
    assert model.state_dict().keys() == theirs["initial"].keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, theirs["initial"][name]), name
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    _, decayed = parameter_groups(model, config.optim.weight_decay)
    assert sorted(names[id(parameter)] for parameter in decayed["params"]) == theirs["decayed"]

    for epoch, order in enumerate(theirs["order"]):
        steps = range(epoch * share.steps_per_epoch, (epoch + 1) * share.steps_per_epoch)
        ours = np.concatenate([share.samples(step).sample for step in steps])
        assert ours.tolist() == order[: len(ours)]

    scores = train(config).scores["student"]
    rows = [row for row in map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines()) if "loss" in row]
    assert [row["lr"] for row in rows] == pytest.approx(theirs["rates"], rel=1e-12)
    losses = [row["loss"] for row in rows]
    assert theirs["losses"][-1] < 0.9 * theirs["losses"][0]  # something is learnt
    assert losses == pytest.approx(theirs["losses"], rel=1e-5)
    newest = checkpoint.newest(tmp_path / "run")
    for which in ("model", "ema"):
        for name, value in load_file(newest / f"{which}.safetensors").items():
            expected = theirs[which][name]
            if name.endswith("qkv.bias"):
                # A bias of the keys changes no softmax: its gradient is rounding, which AdamW makes as large as others.
                value, expected = (torch.cat([bias[:48], bias[96:]]) for bias in (value, expected))
            torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5)
    score = scores["fused" if "fused" in scores else "cls"]
    assert score["top1"] == pytest.approx(theirs["top1"])
    assert score["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
