"""The configuration of a run: five groups of flags that are the command line, `config.json` and the run folder's name.

config = Config(data="/flowers", epochs=20)         # flat, as flags and config.json are
config.data.image_size, config.optim.epochs         # by group, as functions take it
config.replace(epochs=30)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..names import flag
from .data import OFFICIAL_CROP_RATIO, DataConfig, Order, Preprocessing
from .distill import DistillConfig
from .marks import Taught, marked
from .model import ModelConfig
from .optim import CompileMode, OptimConfig, Precision
from .run import RunConfig

__all__ = [
    "OFFICIAL_CROP_RATIO", "CompileMode", "Config", "DataConfig", "DistillConfig", "Flags", "ModelConfig",
    "OptimConfig", "Order", "Precision", "Preprocessing", "RunConfig", "changes", "command_line", "difference",
    "fields_where",
]  # fmt: skip
PARTS = {"data": DataConfig, "model": ModelConfig, "distill": DistillConfig, "optim": OptimConfig, "run": RunConfig}


@dataclass(frozen=True)
class Flags:
    """The command line in its groups."""

    # Recipe
    recipe: Taught[str]  # named defaults, see deit_fast/recipes/; without it: deit, or what fits built-in --data
    data: DataConfig
    model: ModelConfig
    distill: DistillConfig
    optim: OptimConfig
    run: RunConfig

    def flat(self) -> dict[str, Any]:
        """Every flag's value by its field, in the order of config.json."""
        fields = {name: value for part in PARTS for name, value in vars(getattr(self, part)).items()}
        return {"recipe": self.recipe, **fields}


class Config(Flags):
    """What is trained on what, and how. Made of flat fields, of which each is a flag; a recipe sets their defaults.

    Raises:
        TypeError: a field that does not exist.
    """

    def __init__(self, recipe: str = "deit", **fields: Any) -> None:
        parts = {
            part: kind(**{name: fields.pop(name) for name in kind.__dataclass_fields__ if name in fields})
            for part, kind in PARTS.items()
        }
        if fields:
            raise TypeError(f"Config has no field {next(iter(fields))!r}")
        super().__init__(recipe, **parts)

    def replace(self, **fields: Any) -> Config:
        """The same configuration but for these flat fields."""
        return Config(**self.flat() | fields)

    def deciding(self) -> dict[str, Any]:
        """The fields that decide the weights, as JSON values."""
        fields = json.loads(json.dumps(self.flat()))
        for name in ("data", "teacher"):  # the same folder, however it was typed
            fields[name] = fields[name].rstrip("/") or fields[name]
        return {name: value for name, value in fields.items() if name not in fields_where("free")}

    def agreed(self) -> dict[str, Any]:
        """The fields that all ranks must have alike."""
        return {name: value for name, value in self.flat().items() if name not in fields_where("local")}

    def identity(self) -> dict[str, Any]:
        """The same, which names a run: a later version's fields only where they change something."""
        later, default = fields_where("later"), Config().flat()
        return {name: value for name, value in self.deciding().items() if name not in later or value != default[name]}

    def run_folder(self) -> Path:
        """`out`, or a name under runs/ that a different configuration never shares."""
        if self.run.out:
            return Path(self.run.out)
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]
        return Path("runs") / f"{self.recipe}-{self.model.model.replace('/', '_')}-{digest}"

    @staticmethod
    def from_json(path: Path) -> Config:
        """Read back a run folder's `config.json`.

        Raises:
            ValueError: not a configuration of this version.
        """
        try:
            fields = json.loads(path.read_text())
            return Config(**{**fields, "crop_scale": tuple(fields["crop_scale"])})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is not a configuration of this version of deit_fast ({error})") from error

    def check(self) -> None:
        """Refuse what can be seen to be wrong without touching data, model or GPU.

        Raises:
            ValueError: what was given, what is allowed, what to type instead.
        """
        for part in PARTS:
            getattr(self, part).check()
        if self.model.train_mode == "eval" and self.distill.distill != "none":
            raise ValueError(
                "--train-mode eval gives one fused prediction, from which nothing can be distilled (the official "
                "code raises NotImplementedError): type --train-mode train, or --distill none"
            )


def fields_where(meaning: str) -> dict[str, Any]:
    """Field -> value, in the order of the values, of all fields that have this attribute of `marks.Flag`."""
    found = {name: value for kind in (Flags, *PARTS.values()) for name, value in marked(kind, meaning).items()}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, old value, new value) of all that differ; nested mappings by their names, joined by a dot."""
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from changes(before, after, f"{prefix}{name}.")
        elif before != after:
            yield f"{prefix}{name}", before, after


def difference(old: Config, new: Config) -> list[str]:
    """The flags in which two configurations would train different weights, as "--name old -> new"."""
    changed = changes(old.deciding(), new.deciding())
    return [f"{flag(name)} {before!r} -> {after!r}" for name, before, after in changed]


def command_line(config: Config, default: Config, without: Container[str] = ()) -> list[str]:
    """The flags that make `config` of `default`, as typed; those of one start, and `without`, are left out."""
    typed = []
    for name, _, value in changes(default.flat(), config.flat()):
        if name == "recipe" or name in fields_where("once") or name in without:
            continue
        if isinstance(value, bool):
            typed.append(flag(name if value else f"no_{name}"))
        else:
            typed += [flag(name), *map(str, value if isinstance(value, tuple) else (value,))]
    return typed
