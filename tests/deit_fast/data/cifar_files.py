"""Files as CIFAR's archives hold them, with random pixels."""

import pickle

import numpy as np


def write_cifar10(root, images=4):
    """Files as the archive holds them, with `images` images in each of the six."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        data = generator.integers(0, 256, (images, 3072), dtype=np.uint8)
        labels = generator.integers(0, 10, images).tolist()
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}, protocol=2))
    names = [f"class {number}" for number in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=2))
    return folder


def write_cifar100(root):
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    data = np.random.default_rng(1).integers(0, 256, (5, 3072), dtype=np.uint8)
    for name in ("train", "test"):
        content = {"data": data, "fine_labels": [0, 99, 1, 2, 3], "coarse_labels": [0] * 5}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"fine {number}" for number in range(100)]}))
    return folder
