"""Checkpoints: safetensors and JSON, whole or absent, each file with its SHA-256.

    runs/NAME/checkpoints/step_00000240/   model.safetensors  ema.safetensors  optimizer.safetensors  state.json
    runs/NAME/checkpoints/newest           the name of the folder to continue from; moved last
    runs/NAME/checkpoints/best.json        which step scored best, and its file best_00000240.safetensors

Every file is written under another name, synced, and renamed; a crash at any point leaves the previous checkpoint.
`state.json` holds the digests of the files beside it and its own, so later damage is found as well: `newest` skips a
damaged checkpoint with a warning and gives the one before. `snapshot.py` writes beside the training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..config import Config
from ..files import read_json, reading_tensors, sha256_of, write_file, write_folder, write_json
from . import provenance

logger = logging.getLogger(__name__)

VERSION = 2  # 1 had no digests
FORMAT = f"deit_fast checkpoint {VERSION}"
Tensors = dict[str, dict[str, Tensor]]  # file name without suffix → name → values


def tensors_of(model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer) -> Tensors:
    """The tensors of a checkpoint by file; not copies."""
    averages = {} if ema is None else {"ema": ema.state_dict()}
    state = optimizer.state_dict()["state"]
    moments = {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}
    return {"model": model.state_dict(), **averages, "optimizer": moments}


def state_of(config: Config, world_size: int, step: int, seconds: float) -> dict[str, Any]:
    """What state.json holds beside the digests; `seconds` of training are those of all attempts together."""
    versions = {
        "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
        **provenance.versions(("deit-fast", "numpy", "timm", "safetensors")),
    }  # fmt: skip
    return {
        "samples": step * config.optim.batch_size, "global_batch": config.optim.batch_size, "world_size": world_size,
        "seed": config.optim.seed, "data_seed": config.optim.data_seed, "seconds": seconds,
        "config": config.flat(), "versions": versions,
    }  # fmt: skip


def save(
    run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Write the checkpoint of `step`, point to it, and delete all but the `keep` newest.

    The host waits for `tensors` on a device.

    Raises:
        OSError, SafetensorError: the disk refuses; the checkpoints are then as they were.
    """
    folder = run / "checkpoints" / f"step_{step:08d}"

    def fill(partial: Path) -> None:
        for name, values in tensors.items():
            _write_tensors(partial / f"{name}.safetensors", values)
        files = {path.name: sha256_of(path) for path in sorted(partial.glob("*.safetensors"))}
        content = {"format": FORMAT, "step": step, **state, "files": files}
        write_json(partial / "state.json", {**content, "sha256": _digest(content)})

    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear_away(folder.parent)
    write_folder(folder, fill, replace=True)  # also of a step that is trained again, after one was passed over
    write_file(folder.parent / "newest", lambda temporary: temporary.write_text(folder.name + "\n"))
    steps = _steps(run)
    kept = [other for other in steps if other.name <= folder.name][-keep:]  # later steps will be trained again
    for other in steps:
        if other not in kept:
            _remove(other)
    _clear_away(folder.parent)
    return folder


def _clear_away(checkpoints: Path) -> None:
    """Remove what killed writers left, which takes space."""
    for stray in [*checkpoints.glob(".*.part"), *checkpoints.glob(".*.old")]:
        _remove(stray)


def _remove(path: Path) -> None:
    """Remove an old folder or file; a failure costs space only."""
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        logger.warning(f"{path} is no longer needed and cannot be removed ({error.strerror})")


def _steps(run: Path) -> list[Path]:
    try:
        names = os.listdir(run / "checkpoints")
    except (FileNotFoundError, NotADirectoryError):
        return []
    folders = (run / "checkpoints" / name for name in names if re.fullmatch(r"step_\d{8,}", name))
    return sorted(folder for folder in folders if folder.is_dir())


def newest(run: Path) -> Path | None:
    """The newest checkpoint whose files are all whole; None if none was ever written.

    The one that the file `newest` names comes first, then the others by step; each damaged checkpoint is a warning.

    Raises:
        ValueError: there are checkpoints, but none is whole, or one is of another version of deit_fast.
        PermissionError: one may not be read; it may be whole.
    """
    pointer, folders = run / "checkpoints" / "newest", _steps(run)[::-1]
    if not pointer.is_file() and not folders:
        return None
    if pointer.is_file():  # it is not, after a crash before it was first written
        name = pointer.read_text(errors="replace").strip()
        if all(folder.name != name for folder in folders):
            logger.warning(f"{pointer} names {name[:40]!r}, which is not there")
        folders.sort(key=lambda folder: folder.name != name)  # the others stay in their order
    for folder in folders:
        reason = damage(folder)
        if reason is None:
            return folder
        logger.warning(f"{folder} is skipped: {reason}")
    raise ValueError(
        f"{run / 'checkpoints'} holds no whole checkpoint of this version of deit_fast: copy the run folder again if "
        f"it was copied, type another --out, or --fresh to discard the run and start anew"
    )


def damage(folder: Path) -> str | None:
    """How a checkpoint is damaged, in a few words; None if every file is as it was written.

    Raises:
        ValueError: it was written by another version of deit_fast.
        PermissionError: a file of it may not be read.
    """
    try:
        state = read_json(folder / "state.json")
    except ValueError as error:
        return str(error)
    if not isinstance(state, dict) or not str(state.get("format")).startswith("deit_fast checkpoint "):
        return "its state.json was not written by deit_fast"
    if state["format"] != FORMAT:
        raise ValueError(
            f"{folder} was written by another version of deit_fast ({state['format']}; this one reads {VERSION}): "
            f"finish the run with that version, type another --out, or --fresh to discard it"
        )
    digest = state.pop("sha256", None)
    files = state.get("files")
    if digest != _digest(state) or not isinstance(files, dict):
        return "its state.json has changed since it was written"

    paths = [folder / name for name in files]
    with ThreadPoolExecutor() as pool:  # hashing is two thirds of a resume's work, and needs no interpreter lock
        return next(filter(None, pool.map(_damage_of, paths, files.values())), None)


def _damage_of(file: Path, digest: str) -> str | None:
    try:
        return None if sha256_of(file) == digest else f"{file.name} has changed since it was written"
    except PermissionError:
        raise
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"


def load(folder: Path, model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer) -> None:
    """Restore the tensors that `save` wrote; ValueError if they are not those of this model."""
    try:
        model.load_state_dict(_read_tensors(folder / "model.safetensors"))
        if ema is not None:
            ema.load_state_dict(_read_tensors(folder / "ema.safetensors"))
        _load_optimizer(optimizer, _read_tensors(folder / "optimizer.safetensors"))
    except (RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{folder} does not fit this model ({reason}): it was written by another version of deit_fast or of timm. "
            f"Go back to that version, or type --fresh to start anew"
        ) from error


def save_best(run: Path, step: int, tensors: Mapping[str, Tensor], score: Mapping[str, Any]) -> None:
    """Write the best weights, then best.json with their `score`, then remove the old ones, which stay on an error."""
    file = run / "checkpoints" / f"best_{step:08d}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    _write_tensors(file, tensors)
    content = {"format": FORMAT, "step": step, "file": file.name, **score}
    write_json(file.parent / "best.json", {**content, "sha256": sha256_of(file)})
    for other in file.parent.glob("best_*.safetensors"):
        if other != file:
            _remove(other)


def best(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """(file, best.json) of the best weights; None if there are none, or they are damaged. PermissionError if denied."""
    pointer = run / "checkpoints" / "best.json"
    if not pointer.is_file():
        return None
    try:
        content = read_json(pointer)
        file = pointer.parent / Path(content["file"]).name
        another = None if content["format"] == FORMAT else "it was written by another version of deit_fast"
        reason = another or _damage_of(file, content["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error)
    if reason is None:
        return file, content
    logger.warning(f"{pointer} is skipped: {reason}")
    return None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with reading_tensors(path, f"remove {path.parent} to go back to the one before"):
        return load_file(path)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_file(path, lambda temporary: save_file({k: v.contiguous() for k, v in tensors.items()}, temporary))


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # Files do not keep a tensor's memory layout, and fused optimizers need that of the parameter.
    for parameter, values in optimizer.state.items():
        alike = {name: value for name, value in values.items() if value.shape == parameter.shape}
        values.update({name: torch.empty_like(parameter).copy_(value) for name, value in alike.items()})
