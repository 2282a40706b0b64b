"""What a run's folder holds, read back."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from deit_fast.run import checkpoint


def weights(run: str | Path, which: str = "model") -> dict[str, torch.Tensor]:
    return load_file(checkpoint.newest(Path(run)) / f"{which}.safetensors")


def assert_same_weights(run: str | Path, other: str | Path) -> None:
    for which in ("model", "ema", "optimizer"):
        mine, theirs = weights(run, which), weights(other, which)
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]), (which, name)


def rows(run: str | Path) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def losses(run: str | Path) -> list[float]:
    return [row["loss"] for row in rows(run) if "loss" in row]
