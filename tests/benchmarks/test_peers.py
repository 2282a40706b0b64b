"""The peers get the recipe that ours has."""

import pytest

from benchmarks.measure.peers import torchvision_transform
from deit_kernels.augment import Policy

CROP, NORMALISED = ["RandomResizedCrop", "RandomHorizontalFlip"], ["ToDtype", "Normalize"]


@pytest.mark.parametrize(
    ("whole", "expected"),
    [(True, [*CROP, "RandAugment", *NORMALISED, "RandomErasing"]), (False, [*CROP, "Grayscale", *NORMALISED])],
)
def test_torchvision_has_the_stages_of_the_recipe_in_its_order(whole: bool, expected: list[str]) -> None:
    from torchvision.transforms import v2

    transform = torchvision_transform(Policy.deit(), whole, ops=[v2.Grayscale(3)])
    assert [type(stage).__name__ for stage in transform.transforms] == expected
