"""Where a run's time went: the parts of its steps, one after the other, and what ran beside them."""

from __future__ import annotations

from typing import Any

from .facts import Facts

# In the order of a step; "the rest" is what none of the others measured: logging, the loss, waiting for other ranks.
PARTS = {
    "wait": "waiting for a batch",
    "teacher": "teacher",
    "forward": "forward",
    "backward": "backward",
    "optimiser": "optimiser",
    "the rest": "the rest of a step",
    "evaluation": "evaluation",
    "checkpoint": "checkpoint",
}
BESIDE = {"read": "read", "decode": "decode", "copy": "copy to the device", "augment": "augment"}
FREE = {"loader": "if batches were there at once", "teacher": "if the teacher took no time",
        "augment": "if augmentation took no time"}  # fmt: skip


def spent(facts: Facts) -> dict[str, Any] | None:
    """Seconds of every part over the whole run, a restarted one included; None where nothing was logged.

    Returns:
        {"seconds", "parts": [{"key", "name", "seconds", "share"}], "beside": the same of the loader's threads,
        "whole": False where an older version measured only some of the parts, "headroom": as the training measured
        it, or None}.
    """
    if not facts.steps:
        return None
    whole = any("seconds" in row for row in facts.steps)
    sums: dict[str, float] = dict.fromkeys([*PARTS, *BESIDE], 0.0)
    before = 0
    for row in facts.lines:
        for name, seconds in row.get("seconds", {}).items():
            sums[name] = sums.get(name, 0.0) + seconds
        if "loss" not in row:
            continue
        steps, before = row["step"] - before, row["step"]
        lasted = steps * facts.config.batch_size / max(row["images_per_second"], 1e-9)
        if "seconds" not in row:
            sums["wait"] += row["data_wait"] * lasted
            sums["teacher"] += (row.get("teacher_share") or 0.0) * lasted
        own = row.get("seconds") or {"wait": row["data_wait"] * lasted, "teacher": (row["teacher_share"] or 0) * lasted}
        known = sum(own.get(name, 0.0) for name in ("wait", "teacher", "forward", "backward", "optimiser"))
        sums["the rest"] += max(lasted - known, 0.0)
    total = sum(sums[name] for name in PARTS)
    parts = [_part(name, PARTS[name], sums[name], total) for name in PARTS if sums[name] > 0]
    beside = [_part(name, BESIDE[name], sums[name], total) for name in BESIDE if sums[name] > 0]
    return {
        "seconds": total, "parts": parts, "beside": beside, "whole": whole, "headroom": facts.last("headroom"),
    }  # fmt: skip


def _part(key: str, name: str, seconds: float, total: float) -> dict[str, Any]:
    return {"key": key, "name": name, "seconds": seconds, "share": seconds / total if total else 0.0}
