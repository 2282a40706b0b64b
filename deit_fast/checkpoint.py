"""Checkpoints: safetensors and JSON, whole or absent.

    runs/NAME/checkpoints/step_00000240/   model.safetensors  ema.safetensors  optimizer.safetensors  state.json
    runs/NAME/checkpoints/newest           the name of the folder to continue from; moved last

Every file is written under another name, synced, and renamed; a crash at any point leaves the previous checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FORMAT = "deit_fast checkpoint 1"


def sync_folder(folder: Path) -> None:
    """Make the folder's own entries durable: a rename is not, until its folder is synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Create or replace `path` as a whole: `write` fills a temporary file, which is synced and renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_file(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))


def save(
    run: Path, step: int, model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any], keep: int,
) -> Path:  # fmt: skip
    """Write the checkpoint of `step`, point to it, and delete all but the `keep` newest.

    Args:
        run: the run folder.
        state: what else is needed to continue, JSON values.
    """
    folder = run / "checkpoints" / f"step_{step:08d}"
    partial = folder.with_name(f".{folder.name}.part")
    for stale in (partial, folder):  # left by a crash before the pointer moved
        if stale.exists():
            shutil.rmtree(stale)
    partial.mkdir(parents=True)
    _write_tensors(partial / "model.safetensors", model.state_dict())
    if ema is not None:
        _write_tensors(partial / "ema.safetensors", ema.state_dict())
    _write_tensors(partial / "optimizer.safetensors", _optimizer_tensors(optimizer))
    write_json(partial / "state.json", {"format": FORMAT, "step": step, **state})
    os.replace(partial, folder)
    sync_folder(folder.parent)
    write_file(folder.parent / "newest", lambda temporary: temporary.write_text(folder.name + "\n"))
    for old in sorted(folder.parent.glob("step_*"))[:-keep]:
        shutil.rmtree(old)
    return folder


def newest(run: Path) -> Path | None:
    """The checkpoint to continue from, or None.

    Raises:
        ValueError: `checkpoints/` is there but is not ours, or the checkpoint is not whole.
    """
    pointer = run / "checkpoints" / "newest"
    if not pointer.is_file():
        return None
    folder = pointer.parent / pointer.read_text().strip()
    state = folder / "state.json"
    if not state.is_file() or json.loads(state.read_text()).get("format") != FORMAT:
        raise ValueError(
            f"{folder} is not a checkpoint of this version of deit_fast: choose another --out, "
            f"or type --fresh to discard it and start anew"
        )
    return folder


def load(folder: Path, model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore everything `save` wrote; returns the state."""
    model.load_state_dict(load_file(folder / "model.safetensors"))
    if ema is not None:
        ema.load_state_dict(load_file(folder / "ema.safetensors"))
    _load_optimizer(optimizer, load_file(folder / "optimizer.safetensors"))
    return json.loads((folder / "state.json").read_text())


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_file(path, lambda temporary: save_file({k: v.contiguous() for k, v in tensors.items()}, temporary))


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
