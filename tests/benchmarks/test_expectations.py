"""docs/agreement.md says what is so: every line is computed again, and a wrong op would be seen."""

import pytest
import torch

from benchmarks.expectations import page as expectations
from benchmarks.expectations.page import PAGE, lines
from deit_kernels.integrations import models


def test_every_line_of_the_page_is_so() -> None:
    written = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    found = lines()
    assert [(line.library, line.what, line.agrees) for line in found] == [
        (cells[0].removeprefix("| "), cells[1], cells[2]) for cells in written
    ]
    assert [line.what for line in found if line.agrees == "no"] == ["gaussian_blur 1.3"], "torchvision's, not Pillow's"
    assert all(line.why for line in found if line.agrees != "yes")


def test_a_wrong_attention_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = models.attention_qkvpacked
    monkeypatch.setattr(models, "attention_qkvpacked", lambda qkv, **options: right(qkv, **options) * 1.01)
    answers = {line.what.split(":")[0]: line.agrees for line in expectations.attention_in_timm()}
    assert answers["deit_tiny_distilled_patch16_224"] == "no"


def test_a_wrong_recipe_or_mix_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right, expected = expectations.apply, [line.agrees for line in expectations.recipe()]
    assert expected.count("yes") >= 2
    monkeypatch.setattr(expectations, "apply", lambda *arguments: right(*arguments) + 1e-6 * len(arguments))
    assert [line.agrees for line in expectations.recipe()] == ["no" if word == "yes" else word for word in expected]


def test_a_wrong_augmentation_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = expectations.apply_op
    monkeypatch.setattr(expectations, "apply_op", lambda *arguments: right(*arguments) ^ torch.tensor(16).byte())
    answers = [line.agrees for line in expectations.augmentation() if line.what.startswith("invert")]
    assert answers == ["no", "no"]
