"""Images that cannot be read, or that a crop refuses: one by one named, skipped or refused."""

import io

import pytest
import torch
from PIL import Image

from deit_fast.data import IGNORE, BadImage, EvalLoader
from deit_kernels.augment import Policy
from tests.deit_fast.data.loader_cases import (  # noqa: F401
    EVAL,
    POLICY,
    assert_equal,
    loader_of,
    no_thread_survives_a_test,
    our_threads,
    train_loader,
)
from tests.deit_fast.data.memory_dataset import MemoryDataset


@pytest.fixture
def damaged(dataset):
    """Image 4 is cut in the middle, image 9 has vanished."""
    dataset.files[4] = dataset.files[4][: len(dataset.files[4]) // 2]
    read = dataset.read

    def vanished(index):
        if index == 9:
            raise FileNotFoundError(2, "No such file or directory")
        return read(index)

    dataset.read = vanished
    return dataset


def test_skipped_images_are_blank_unlabelled_and_named_and_change_no_other_row(damaged):
    whole = list(train_loader(MemoryDataset(30), repeats=2))
    loader = train_loader(damaged, repeats=2)
    blanked = 0
    for batch, sound in zip(loader, whole, strict=True):
        bad = (batch.samples == 4) | (batch.samples == 9)
        blanked += int(bad.sum())
        assert torch.equal(batch.images, torch.where(bad[:, None, None, None], 0.0, sound.images))
        assert torch.equal(batch.labels, torch.where(bad, IGNORE, sound.labels))
        assert torch.equal(batch.samples, sound.samples)
    assert blanked > 2
    assert list(loader.bad_images) == ["image-4", "image-9"]
    assert loader.bad_images["image-4"].startswith("it is truncated or corrupt")
    assert loader.bad_images["image-9"] == "it cannot be read (No such file or directory)"


def test_only_images_of_batches_already_given_are_named(damaged):
    """Not what a thread has met ahead: the list is the same for any prefetch."""
    loader = train_loader(damaged, prefetch=4)
    with_bad = [set(batch.samples.tolist()) & {4, 9} for batch in train_loader(MemoryDataset(30))]
    seen = set()
    for batch, bad in zip(loader, with_bad, strict=True):
        seen |= bad
        assert set(loader.bad_images) == {f"image-{index}" for index in seen}, batch.step


def test_failing_names_the_file_and_the_way_out(damaged):
    with pytest.raises(BadImage, match=r"image-(4|9): it .*: repair or remove it, or type --bad-images skip"):
        list(train_loader(damaged, bad_images="fail"))


def test_good_batches_before_a_bad_one_are_given_first(damaged):
    whole = list(train_loader(MemoryDataset(30)))
    given = []
    with pytest.raises(BadImage):
        for batch in train_loader(damaged, bad_images="fail", prefetch=4):
            given.append(batch)
    assert_equal(given, whole[: len(given)])
    assert {4, 9} & set(whole[len(given)].samples.tolist())


@pytest.fixture
def strip() -> bytes:
    """A sound image of 80 000 × 1 pixels."""
    return encoded_strip(80_000, 1)


def encoded_strip(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


SIMPLE = Policy(size=224, crop="simple", pad=4)


@pytest.mark.parametrize("in_memory", [False, True])
def test_an_image_that_the_crop_refuses_is_one_bad_image(dataset, strip, in_memory):
    settings = dict(data_seed=7, batch_size=12, total_steps=3, threads=2, in_memory=in_memory)
    sound = list(loader_of(dataset, SIMPLE, **settings))
    dataset.files[4] = strip
    loader = loader_of(dataset, SIMPLE, **settings)
    for batch, whole in zip(loader, sound, strict=True):
        bad = batch.samples == 4
        assert torch.equal(batch.images, torch.where(bad[:, None, None, None], 0.0, whole.images))
        assert torch.equal(batch.labels, torch.where(bad, IGNORE, whole.labels))
    reason = "the crop needs sides of less than 74,898 to 1, and it has 80000 × 1 pixels"
    assert loader.bad_images == {"image-4": reason}
    with pytest.raises(BadImage, match=r"image-4: the crop needs .*: repair or remove it, or type --bad-images skip"):
        list(loader_of(dataset, SIMPLE, **settings, bad_images="fail"))


def test_an_image_that_another_policy_refuses_is_trained_on(dataset, strip):
    dataset.files[4] = strip
    loader = train_loader(dataset)
    assert all((batch.labels != IGNORE).all() for batch in loader)
    assert loader.bad_images == {}


@pytest.mark.parametrize("policy", [POLICY, SIMPLE, EVAL])
def test_an_image_with_a_side_that_no_plan_takes_is_one_bad_image(dataset, policy):
    dataset.files[4] = encoded_strip(17_000_000, 1)
    loader = EvalLoader(dataset, policy, batch_size=10)
    assert [(batch.labels == IGNORE).sum().item() for batch in loader] == [1, 0, 0]
    assert loader.bad_images == {"image-4": "17000000 × 1 has a side above the limit of 16777215 pixels"}


def test_an_image_beyond_the_center_crop_is_one_bad_image(dataset):
    dataset.files[4] = encoded_strip(9_000_000, 1)
    loader = EvalLoader(dataset, Policy.eval(224), batch_size=10)
    assert [(batch.labels == IGNORE).sum().item() for batch in loader] == [1, 0, 0]
    assert loader.bad_images["image-4"].endswith("and it has 9000000 × 1 pixels")


def test_a_step_without_a_readable_image_stops_the_training(dataset):
    dataset.files = [b""] * 30
    with pytest.raises(BadImage, match=r"step 0 has no readable image; the first of 12 is image-\d+: the file"):
        list(train_loader(dataset))


def test_a_broken_class_is_left_out_of_the_evaluation_but_not_everything(dataset):
    dataset.files[:8] = [b""] * 8
    batches = list(EvalLoader(dataset, EVAL, batch_size=4))
    assert torch.cat([batch.labels for batch in batches]).tolist()[:9] == [IGNORE] * 8 + [8 % 3]
    assert not batches[0].images.any()
    dataset.files = [b""] * 30
    with pytest.raises(BadImage, match="none of the 30 images is readable; the first is image-0: the file is empty"):
        list(EvalLoader(dataset, EVAL, batch_size=4))
