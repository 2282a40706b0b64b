"""--class-weights: the two rules, a file of them, and how a file is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deit_fast.data.class_weights import class_weights
from tests.deit_fast.data.memory_dataset import MemoryDataset


def dataset(*counts: int) -> MemoryDataset:
    """So many images of ant, bee and cat."""
    data = MemoryDataset(0)
    data.labels = np.repeat(np.arange(3), counts)
    return data


def test_balanced_is_scikit_learns_rule_by_which_all_classes_weigh_alike() -> None:
    weights = class_weights("balanced", dataset(60, 30, 10))
    assert weights.tolist() == pytest.approx([100 / (3 * 60), 100 / (3 * 30), 100 / (3 * 10)])
    assert (weights * torch.tensor([60, 30, 10])).tolist() == pytest.approx([100 / 3] * 3)


def test_effective_is_the_papers_rule_and_lies_between_balanced_and_none() -> None:
    counts = (50_000, 5_000, 50)
    weights = class_weights("effective", dataset(*counts))
    of_paper = [(1 - 0.9999) / (1 - 0.9999**n) for n in counts]
    assert weights.tolist() == pytest.approx([3 * each / sum(of_paper) for each in of_paper])
    balanced = class_weights("balanced", dataset(*counts))
    assert 1 < weights[2] / weights[0] < balanced[2] / balanced[0]


@pytest.mark.parametrize("rule", ["balanced", "effective"])
def test_a_class_without_images_weighs_1_and_changes_no_other(rule: str) -> None:
    two = dataset(6, 2, 0)
    weights = class_weights(rule, two)
    two.classes = ("ant", "bee")
    assert weights.tolist() == [*class_weights(rule, two).tolist(), 1.0]


@pytest.mark.parametrize(
    "text",
    ["bee 2\n\n  ant\t0.25\ncat 1e-3\n", json.dumps({"cat": 1e-3, "ant": 0.25, "bee": 2})],
    ids=["lines", "JSON"],
)
def test_a_file_names_classes_in_any_order(text: str, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text(text)
    assert class_weights(str(tmp_path / "weights"), dataset(1, 1, 1)).tolist() == [0.25, 2.0, 1e-3]


def test_a_name_may_have_spaces(tmp_path: Path) -> None:
    data = dataset(1, 1, 1)
    data.classes = ("great tit", "bee", "cat")
    (tmp_path / "weights").write_text("great tit 3\nbee 1\ncat 1\n")
    assert class_weights(str(tmp_path / "weights"), data)[0] == 3


WRONG = {
    "ant 1\nbee 1\ndog 1\n": "names 'dog', which is no class of the data",
    "ant 1\nant 1\nbee 1\ncat 1\n": "names 'ant' twice",
    '{"ant": 1, "bee": 1, "cat": 1, "ant": 2}': "names 'ant' twice",
    "bee 1\n": "has no weight for 'ant' and 1 more",
    "ant -1\nbee 1\ncat 1\n": "gives 'ant' the weight -1.0",
    "ant 1\nbee nan\ncat 1\n": "gives 'bee' the weight nan",
    "ant 1\nbee 1\ncat inf\n": "gives 'cat' the weight inf",
    "ant 0\nbee 0\ncat 0\n": "gives every class the weight 0",
    "ant\nbee\n": "holds no class weights",
    "ant one\n": "holds no class weights",
    '{"ant": {"bee": 1}}': "holds no class weights",
    '{"ant": 1': "holds no class weights",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_with_a_file_is_one_sentence_that_says_what_to_write(text: str, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text(text)
    with pytest.raises(ValueError) as caught:
        class_weights(str(tmp_path / "weights"), dataset(1, 1, 1))
    said = str(caught.value)
    assert said.startswith(f"--class-weights {tmp_path / 'weights'} {WRONG[text]}") and "\n" not in said
    assert "write a line CLASS WEIGHT for every class, or JSON" in said


def test_a_file_that_is_not_there_may_be_a_rule_mistyped() -> None:
    with pytest.raises(ValueError, match=r"--class-weights balance cannot be read .*: type balanced, effective, or"):
        class_weights("balance", dataset(1, 1, 1))
