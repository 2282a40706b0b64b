"""ImageNet's flat validation folder with every file of labels people have, ImageNet-V2, ReaL labels."""

import json
import shutil

import numpy as np
import pytest
import torch

from deit_fast.data import open_dataset, open_evaluation
from deit_fast.tools.data.labels import real_labels
from tests.deit_fast.data.memory_dataset import encoded_image

CLASSES = ["n01440764", "n01443537", "n01484850"]
LABELS = [2, 0, 1, 2]  # of ILSVRC2012_val_00000001 to 4


@pytest.fixture
def imagenet(tmp_path):
    """Three classes; validation images 1 to 4 side by side."""
    root = tmp_path / "imagenet"
    for number, name in enumerate(CLASSES):
        (root / "train" / name).mkdir(parents=True)
        (root / "train" / name / f"{name}_1.JPEG").write_bytes(encoded_image(number, "JPEG"))
    (root / "val").mkdir()
    for number in range(1, 5):
        (root / "val" / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(encoded_image(10 + number, "JPEG"))
    return root


def kaggle(root):
    lines = [f"ILSVRC2012_val_{n:08},{CLASSES[LABELS[n - 1]]} 1 2 3 4 {CLASSES[0]} 5 6 7 8" for n in (4, 2, 1, 3)]
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(lines) + "\n")


def caffe(root):
    lines = [f"ILSVRC2012_val_{number:08}.JPEG {label}" for number, label in enumerate(LABELS, 1)]
    (root / "val" / "val.txt").write_text("\n".join(lines))


def synsets(root):
    lines = [CLASSES[label] for label in LABELS]
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(lines))


def torchvision_meta(root):
    torch.save(({name: ("fish",) for name in CLASSES}, [CLASSES[label] for label in LABELS]), root / "meta.bin")


def devkit(root):
    """Its own numbers of classes: not in the order of the names."""
    scipy = pytest.importorskip("scipy.io")
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    table = np.array([(7, CLASSES[2]), (3, CLASSES[0]), (5, CLASSES[1])], [("ILSVRC2012_ID", int), ("WNID", object)])
    scipy.savemat(folder / "meta.mat", {"synsets": table})
    numbers = [{0: 3, 1: 5, 2: 7}[label] for label in LABELS]
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, numbers)))


@pytest.mark.parametrize("labels", [kaggle, caffe, synsets, torchvision_meta, devkit])
def test_a_flat_validation_folder_has_its_labels_from_a_file_beside_it(imagenet, labels):
    labels(imagenet)
    train, val = open_dataset(str(imagenet))
    assert val.classes == train.classes == CLASSES
    assert val.labels.tolist() == LABELS
    assert val.read(2) == encoded_image(13, "JPEG")
    assert val.path(2).endswith("val/ILSVRC2012_val_00000003.JPEG")


def test_what_is_no_image_in_a_flat_folder_is_listed_but_the_labels(imagenet):
    caffe(imagenet)
    (imagenet / "val" / "notes.doc").touch()
    _, val = open_dataset(str(imagenet))
    assert val.left_out == [str(imagenet / "val" / "notes.doc")]


def refused(imagenet) -> str:
    with pytest.raises(ValueError) as caught:
        open_dataset(str(imagenet))
    return str(caught.value)


def test_labels_that_are_missing_or_unknown_are_named(imagenet):
    synsets(imagenet)
    file = imagenet / "imagenet_2012_validation_synset_labels.txt"
    file.write_text("\n".join([*CLASSES[:2], "n99999999", CLASSES[0]]))
    assert refused(imagenet).endswith("00000003.JPEG the label n99999999, which the training images lack")
    file.write_text(CLASSES[0])
    assert refused(imagenet).endswith("has no label for " + str(imagenet / "val/ILSVRC2012_val_00000002.JPEG"))
    file.unlink()
    (imagenet / "val" / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG three")
    assert "val.txt does not list labels as its name promises" in refused(imagenet)


def test_a_meta_file_with_code_is_refused(imagenet):
    torch.save(([print], CLASSES), imagenet / "meta.bin")
    assert "meta.bin is not the meta.bin of torchvision" in refused(imagenet)


@pytest.fixture
def v2(tmp_path):
    """ImageNet-V2 of twelve classes: sub-folders 0 … 11, which sort as 0, 1, 10, 11, 2, …"""
    root = tmp_path / "imagenetv2-matched-frequency-format-val"
    for number in range(12):
        (root / str(number)).mkdir(parents=True)
        (root / str(number) / "a.jpeg").write_bytes(encoded_image(number, "JPEG"))
    return root


def test_numbered_folders_are_classes_by_number_and_not_by_name(v2):
    classes = [f"n{number:08}" for number in range(12)]
    images = open_evaluation(str(v2), classes)
    assert images.classes == classes
    assert sorted(images.labels.tolist()) == list(range(12))
    for index, label in enumerate(images.labels.tolist()):
        assert images.path(index) == f"{v2}/{label}/a.jpeg"
        assert images.read(index) == encoded_image(label, "JPEG")
    with pytest.raises(ValueError, match=r"has 2 classes \(10, 11\) outside the 10 of the training images"):
        open_evaluation(str(v2), classes[:10])


def test_other_images_of_the_same_classes_can_be_evaluated(imagenet, image_folder):
    synsets(imagenet)
    assert open_evaluation(str(imagenet), CLASSES).labels.tolist() == LABELS
    assert open_evaluation(str(imagenet / "train"), CLASSES).labels.tolist() == [0, 1, 2]
    assert open_evaluation(str(imagenet / "val"), CLASSES).labels.tolist() == LABELS
    with pytest.raises(ValueError, match=r"val has 2 classes \(.*\) that the training images lack"):
        open_evaluation(str(image_folder), CLASSES)
    shutil.rmtree(imagenet / "train")
    assert open_evaluation(str(imagenet), CLASSES).labels.tolist() == LABELS
    (imagenet / "val").rename(imagenet / "train")
    with pytest.raises(ValueError, match="has no val/ inside"):
        open_evaluation(str(imagenet), CLASSES)


def test_real_labels_stand_in_the_order_of_the_images(imagenet, tmp_path):
    file = tmp_path / "real.json"
    file.write_text(json.dumps([[2], [], [0, 1], [2]]))
    paths = [str(imagenet / f"val/ILSVRC2012_val_{number:08}.JPEG") for number in (3, 1, 2, 4)]
    table = real_labels(file, paths)
    assert table.dtype == np.int64
    assert table.tolist() == [[0, 1], [2, -1], [-1, -1], [2, -1]]
    with pytest.raises(ValueError, match=r"cat\.jpg is not one of them"):
        real_labels(file, [*paths, "cat.jpg"])
    with pytest.raises(ValueError, match=r"has 4 lists of labels: expected 50000, .* or 4, .* up to number 9"):
        real_labels(file, [*paths[:3], paths[3].replace("0004", "0009")])
    with pytest.raises(ValueError, match=r"has 4 lists of labels: expected 50000, .* or 3"):
        real_labels(file, paths[:3])
    for text in ("{", '{"a": 1}', "[[1], [[]], 2, null]"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"is not real\.json"):
            real_labels(file, paths)


def test_some_of_the_validation_images_have_their_labels_in_the_whole_file(imagenet, tmp_path):
    file = tmp_path / "real.json"
    file.write_text(json.dumps([[number % 3] for number in range(50_000)]))
    paths = [f"val/n01440764/ILSVRC2012_val_{number:08}.JPEG" for number in (50_000, 2)]
    assert real_labels(file, paths).tolist() == [[49_999 % 3], [1]]
