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
        measured = dict(row.get("seconds", {}))
        if "loss" in row:
            steps, before = row["step"] - before, row["step"]
            lasted = steps * facts.config.optim.batch_size / max(row["images_per_second"], 1e-9)
            if not measured:  # of an older version
                measured = {"wait": row["data_wait"] * lasted, "teacher": (row.get("teacher_share") or 0.0) * lasted}
            known = sum(measured.get(name, 0.0) for name in ("wait", "teacher", "forward", "backward", "optimiser"))
            measured["the rest"] = max(lasted - known, 0.0)
        for name, seconds in measured.items():
            sums[name] = sums.get(name, 0.0) + seconds
    total = sum(sums[name] for name in PARTS)

    def listed(names: dict[str, str]) -> list[dict[str, Any]]:
        return [
            {"key": key, "name": name, "seconds": sums[key], "share": sums[key] / (total or 1.0)}
            for key, name in names.items()
            if sums[key] > 0
        ]

    return {
        "seconds": total, "parts": listed(PARTS), "beside": listed(BESIDE), "whole": whole,
        "headroom": facts.last("headroom"),
    }  # fmt: skip
