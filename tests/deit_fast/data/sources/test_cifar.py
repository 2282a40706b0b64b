"""CIFAR's own files: torchvision's pixels and labels, and no code of a file is ever run."""

import os
import pickle

import numpy as np
import pytest

from deit_fast.data import open_dataset
from tests.deit_fast.data.cifar_files import write_cifar10, write_cifar100


@pytest.mark.parametrize(("write", "kind"), [(write_cifar10, "CIFAR10"), (write_cifar100, "CIFAR100")])
def test_pixels_labels_and_names_are_those_of_torchvision(tmp_path, monkeypatch, write, kind):
    datasets = pytest.importorskip("torchvision.datasets")
    peer = getattr(datasets, kind)
    monkeypatch.setattr(peer, "_check_integrity", lambda self: True)  # of the md5 sums: these are not the real images
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
    folder = write(tmp_path)
    for spec in (tmp_path, folder):
        for ours, train in zip(open_dataset(str(spec)), (True, False), strict=True):
            theirs = peer(tmp_path, train=train)
            assert ours.classes == theirs.classes
            assert ours.labels.tolist() == theirs.targets
            assert len(ours) == len(theirs)
            for index in range(len(ours)):
                assert np.array_equal(ours.read(index), theirs.data[index])
    train, _ = open_dataset(str(tmp_path))
    assert train.path(4).startswith(str(folder))
    assert train.path(4).endswith("data_batch_2[0]" if kind == "CIFAR10" else "train[4]")


def refused(spec) -> str:
    with pytest.raises(ValueError) as caught:
        open_dataset(str(spec))
    return str(caught.value)


class Code:
    def __reduce__(self):
        return os.mkdir, (os.environ["MADE_BY_CODE"],)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MADE_BY_CODE", str(tmp_path / "made"))
    folder = write_cifar10(tmp_path)
    (folder / "data_batch_3").write_bytes(pickle.dumps({"data": Code(), "labels": []}))
    assert "data_batch_3 is not a CIFAR file (UnpicklingError: it names posix.mkdir" in refused(tmp_path)
    assert not (tmp_path / "made").exists()


def test_missing_truncated_and_odd_files_are_named(tmp_path):
    folder = write_cifar10(tmp_path)
    batch = folder / "data_batch_2"
    sound = batch.read_bytes()
    batch.unlink()
    assert f"cannot read {batch} (No such file or directory)" in refused(tmp_path)
    batch.write_bytes(sound[:-50])
    assert f"{batch} is not a CIFAR file" in refused(tmp_path)
    batch.write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}))
    assert f"{batch} holds 2 images but 1 labels" in refused(tmp_path)
    batch.write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]}))
    assert f"{batch}[1] has label 10, outside 0 … 9" in refused(tmp_path)
    batch.write_bytes(pickle.dumps({"data": np.zeros((2, 784), np.uint8), "labels": [1, 2]}))
    assert f"{batch}: data is uint8 (N, 3072), got uint8 (2, 784)" in refused(tmp_path)
