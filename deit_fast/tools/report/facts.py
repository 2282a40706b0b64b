"""What a run folder says of a run, without its images: configuration, scores, curves, where it was made."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...config import Config
from ...files import read_json
from ...names import flag, headline
from ...recipes.named import RECIPES, recipe
from ...run.checkpoint import newest
from ...run.folder import read_summary

_OF_ONE_START = ("recipe", "out", "fresh", "dry_run", "profile")  # fields that the repeating command says otherwise


@dataclass(frozen=True)
class Facts:
    """A run, finished or not."""

    folder: Path
    config: Config
    data: dict[str, Any]  # data.json: "classes", "train", "val", "labels"
    summary: dict[str, Any] | None  # None while it is unfinished
    lines: list[dict[str, Any]]  # of metrics.jsonl
    state: dict[str, Any]  # of the newest checkpoint: "versions", "seconds", "world_size", "step"

    @classmethod
    def read(cls, folder: Path) -> Facts:
        """Raises ValueError where `folder` is not a run that has begun."""
        for name in ("config.json", "data.json", "metrics.jsonl"):
            if not (folder / name).is_file():
                raise ValueError(
                    f"{folder} is not a run ({name} is missing): type the folder that deit-fast train made"
                )
        checkpoint = newest(folder)
        return cls(
            folder,
            Config.from_json(folder / "config.json"),
            read_json(folder / "data.json"),
            read_summary(folder) if (folder / "summary.json").is_file() else None,
            [
                row
                for line in (folder / "metrics.jsonl").read_text(errors="replace").splitlines()
                if (row := _row(line))
            ],
            {} if checkpoint is None else read_json(checkpoint / "state.json"),
        )

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """The lines of log intervals."""
        return [row for row in self.lines if "loss" in row]

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of evaluations; of two of one step, as a restart may leave them, the newer."""
        return list({row["step"]: row for row in self.lines if "student" in row}.values())

    def last(self, key: str) -> Any:
        """The newest value of `key` in metrics.jsonl, None without one."""
        return next((row[key] for row in reversed(self.lines) if key in row), None)

    def scores(self) -> dict[str, dict[str, dict[str, float]]]:
        """{"teacher" | "student" | "ema": {head: score}} of the finished run, or of its newest evaluation."""
        found = self.summary or (self.evaluations[-1] if self.evaluations else {})
        scores = {kind: found[kind] for kind in ("student", "ema") if found.get(kind)}
        return ({"teacher": {"cls": found["teacher"]}} if found.get("teacher") else {}) | scores

    def best(self) -> tuple[str, float] | None:
        """("student" or "ema", top-1) of the score that --fusion makes the model's own, the better of the two."""
        own = {kind: heads for kind, heads in self.scores().items() if kind != "teacher"}
        found = [(heads[headline(heads, self.config.fusion)]["top1"], kind) for kind, heads in own.items()]
        if not found:
            return None
        top1, kind = max(found, key=lambda pair: pair[0])
        return kind, top1

    def command(self) -> str:
        """A command that trains the same weights into a folder of its own."""
        return shlex.join(["deit-fast", "train", *arguments(self.config), "--out", f"{self.folder}-again"])


def arguments(config: Config) -> list[str]:
    """The command line of a configuration: its recipe, and every flag that differs from it."""
    known = config.recipe in RECIPES
    default = recipe(config.recipe) if known else recipe("deit")
    typed = ["--recipe", config.recipe if known else "deit"]
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if field.name in _OF_ONE_START or value == getattr(default, field.name):
            continue
        spelled = flag(field.name)
        if isinstance(value, bool):
            typed.append(spelled if value else f"--no-{spelled[2:]}")
        else:
            typed += [spelled, *map(str, value if isinstance(value, tuple) else (value,))]
    return typed


def _row(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if a kill has cut it off."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None
