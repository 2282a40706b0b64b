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
from safetensors import SafetensorError
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


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        ValueError: the file is missing, unreadable or not JSON; it is named.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged, it is not JSON ({error})") from error


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
    folder.parent.mkdir(parents=True, exist_ok=True)
    # What a crash left: half a checkpoint, or whole ones of steps that are being trained again.
    for stale in (partial, *(other for other in _steps(run) if other.name >= folder.name)):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir()
    try:
        _write_tensors(partial / "model.safetensors", model.state_dict())
        if ema is not None:
            _write_tensors(partial / "ema.safetensors", ema.state_dict())
        _write_tensors(partial / "optimizer.safetensors", _optimizer_tensors(optimizer))
        write_json(partial / "state.json", {"format": FORMAT, "step": step, **state})
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(folder.parent)
    write_file(folder.parent / "newest", lambda temporary: temporary.write_text(folder.name + "\n"))
    for old in _steps(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def _steps(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step_*"))


def newest(run: Path) -> Path | None:
    """The checkpoint to continue from, or None.

    Without the pointer (a crash before it was first written) that is the last folder, whole because it was renamed.

    Raises:
        ValueError: `checkpoints/` is there but is not ours, or the checkpoint is not whole.
    """
    pointer = run / "checkpoints" / "newest"
    folders = _steps(run)
    if not pointer.is_file() and not folders:
        return None
    folder = pointer.parent / pointer.read_text().strip() if pointer.is_file() else folders[-1]
    files = ("state.json", "model.safetensors", "optimizer.safetensors")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing or read_json(folder / "state.json").get("format") != FORMAT:
        others = [other.name for other in folders if other != folder]
        older = f", write {others[-1]} into {pointer} to go back to that one" if others else ""
        raise ValueError(
            f"{folder} is not a whole checkpoint of this version of deit_fast"
            f"{f' ({missing[0]} is missing)' if missing else ''}: type another --out{older}, "
            f"or type --fresh to discard the run and start anew"
        )
    return folder


def load(folder: Path, model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore everything `save` wrote; returns the state.

    Raises:
        ValueError: a file is cut off or missing.
    """
    model.load_state_dict(_read_tensors(folder / "model.safetensors"))
    if ema is not None:
        ema.load_state_dict(_read_tensors(folder / "ema.safetensors"))
    _load_optimizer(optimizer, _read_tensors(folder / "optimizer.safetensors"))
    return read_json(folder / "state.json")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not whole ({error}): remove {path.parent} to go back to the one before") from error


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
    # In its parameter's memory layout, which files do not keep and fused optimizers take for granted.
    for parameter, values in optimizer.state.items():
        alike = {name: value for name, value in values.items() if value.shape == parameter.shape}
        values.update({name: torch.empty_like(parameter).copy_(value) for name, value in alike.items()})
