"""The words for a model's scores, and what is offered for a name that does not exist."""

import pytest

from deit_fast.names import HEADS, SCORE_NAMES, did_you_mean, headline


def test_every_fusion_has_a_score_and_every_score_its_words() -> None:
    assert sorted(SCORE_NAMES.values()) == sorted(HEADS)


@pytest.mark.parametrize(("fusion", "name"), [("logits", "fused"), ("softmax", "softmax"), ("dist", "dist")])
def test_the_headline_is_the_fusions_score_and_a_plain_models_only_one(fusion: str, name: str) -> None:
    assert headline(HEADS, fusion) == name
    assert headline({"cls": {"top1": 1.0}}, fusion) == "cls"


def test_the_nearest_names_are_offered_else_others_else_nothing() -> None:
    known = {"train": 1, "trim": 2, "export": 3}
    assert did_you_mean("tran", known) == "did you mean train or trim?"
    assert did_you_mean("tran", known, most=1, flag="--") == "did you mean --train?"
    assert did_you_mean("tran", known, cutoff=0.8) == "did you mean train?"
    assert did_you_mean("zzz", known, ["a", "b"], flag="--") == "did you mean --a or --b?"
    assert did_you_mean("zzz", known) == ""
