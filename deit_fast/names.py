"""Names that people read and type: a model's scores, flags, and those nearest to a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

# Every score of a distilled model, as summary.json names it, and its words; a plain model has "cls".
HEADS = {
    "cls": "class token",
    "dist": "distillation token",
    "fused": "fused, mean logits",
    "softmax": "fused, mean softmax",
}
SCORE_NAMES = {"logits": "fused", "softmax": "softmax", "cls": "cls", "dist": "dist"}  # by --fusion


def headline(scores: Collection[str], fusion: str) -> str:
    """The name of the score that --fusion makes the model's own."""
    return SCORE_NAMES[fusion] if SCORE_NAMES[fusion] in scores else "cls"


def flag(field: str) -> str:
    """The command line's spelling of a field."""
    return "--" + field.replace("_", "-")


def did_you_mean(
    name: str, known: Iterable[str], otherwise: Iterable[str] = (),
    *, most: int = 3, cutoff: float = 0.5, flag: str = "",
) -> str:  # fmt: skip
    """The end of a sentence, "did you mean A or B?": the known names nearest to `name`, else `otherwise`, else "".

    `cutoff` is the least likeness, from 0 to 1; `flag` is typed before each, such as "--recipe ".
    """
    near = difflib.get_close_matches(name, known, n=most, cutoff=cutoff) or otherwise
    offered = " or ".join(f"{flag}{one}" for one in near)
    return offered and f"did you mean {offered}?"
