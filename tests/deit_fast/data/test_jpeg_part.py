"""Of a JPEG file only what crops need is decoded: the same pixels, the same batches, the same refusals."""

import io
import sys
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from deit_fast.data import BadImage, decode, jpeg_part
from deit_fast.data.decode import LARGE_PART, decode_wanted
from deit_fast.data.jpeg_part import BLOCK, Box, RandomCrops, decodable
from deit_kernels.augment import Policy, sample_plan
from tests.deit_fast.data.loader_cases import loader_of
from tests.deit_fast.data.memory_dataset import MemoryDataset

pytestmark = pytest.mark.skipif(bool(jpeg_part.missing), reason=jpeg_part.missing)

RANDOM = np.random.default_rng(0)
VARIANTS = {
    "4:4:4": dict(subsampling=0),
    "4:2:2": dict(subsampling=1),
    "4:2:0": dict(subsampling=2),
    "4:4:0": dict(subsampling="440"),  # which Pillow reads and does not write
    "4:1:1": dict(subsampling="4:1:1"),
    "progressive": dict(progressive=True),
    "restart markers": dict(restart_marker_blocks=3),
    "coarse": dict(quality=5),
    "stored as RGB": dict(keep_rgb=True),
}


@pytest.fixture(autouse=True)
def the_same_numbers_in_any_order():
    RANDOM.bit_generator.state = np.random.default_rng(0).bit_generator.state


def photograph(height: int, width: int) -> Image.Image:
    """Smooth colours with noise on them: subsampled chroma spreads over its neighbours."""
    small = Image.fromarray(RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height))
    noise = RANDOM.integers(-30, 31, (height, width, 3))
    return Image.fromarray((np.asarray(small) + noise).clip(0, 255).astype(np.uint8))


def jpeg(height: int, width: int, **options) -> bytes:
    if options.get("subsampling") == "440":
        return simplejpeg.encode_jpeg(np.asarray(photograph(height, width)), colorsubsampling="440")
    file = io.BytesIO()
    photograph(height, width).save(file, "JPEG", **options)
    return file.getvalue()


def random_boxes(height: int, width: int, count: int) -> list[Box]:
    """Anywhere, every fourth at an edge, every tenth a pixel."""
    boxes = []
    for number in range(count):
        high, wide = RANDOM.integers(1, height + 1), RANDOM.integers(1, width + 1)
        if number % 10 == 0:
            high = wide = 1
        top, left = RANDOM.integers(0, height - high + 1), RANDOM.integers(0, width - wide + 1)
        if number % 4 == 0:
            top, left = RANDOM.choice([0, height - high]), RANDOM.choice([0, width - wide])
        boxes.append(Box(*map(int, (top, left, high, wide))))
    return boxes


def cut(pixels: np.ndarray, box: Box) -> np.ndarray:
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_part_has_the_pixels_of_the_whole(variant, grey):
    for height, width in [(75, 140), (64, 96), (1, 200), (33, 17)]:
        data = jpeg(height, width, **VARIANTS[variant])
        if grey:
            file = io.BytesIO()
            Image.open(io.BytesIO(data)).convert("L").save(file, "JPEG", progressive=variant == "progressive")
            data = file.getvalue()
        whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        for box in random_boxes(height, width, 40):
            outer = decodable(box, width)
            pixels = np.empty((outer.height, outer.width, 3), np.uint8)
            assert jpeg_part.decode_part(data, outer, pixels)
            inner = Box(0, box.left - outer.left, box.height, box.width)
            assert np.array_equal(cut(pixels, inner), cut(whole, box)), (box, outer)


@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_progressive_file_that_lacks_scans_is_decoded_whole(subsampling):
    """What is missing is smoothed over by neighbours that a part does not have."""
    data = jpeg(64, 96, subsampling=subsampling, progressive=True)
    scans = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for place in scans[1:]:
        cut_short = data[:place] + b"\xff\xd9"
        whole = decode(cut_short)
        assert np.array_equal(whole, np.asarray(Image.open(io.BytesIO(cut_short)).convert("RGB")))
        got = decode_wanted(cut_short, lambda height, width: Box(10, 40, 20, 30))
        assert np.array_equal(got.pixels, whole)


def test_numbers_of_another_version_have_no_box():
    numbers = np.zeros(1, np.dtype([("seed", np.uint64)]))
    assert RandomCrops(numbers, np.zeros((1, 3), np.int64), np.zeros(1, np.int64)).box(0, 100, 100) is None


def test_a_box_that_is_not_in_the_image_or_begins_inside_a_block_is_refused():
    data, room = jpeg(50, 90), np.empty((200, 200, 3), np.uint8)
    good = Box(5, 2 * BLOCK, 10, 20)
    assert jpeg_part.decode_part(data, good, room)
    for wrong in ("top", "left", "height", "width"):
        for value in (-BLOCK, 96):
            assert not jpeg_part.decode_part(data, good._replace(**{wrong: value}), room), (wrong, value)
    assert not jpeg_part.decode_part(data, good._replace(left=BLOCK + 1), room)


def test_nothing_is_written_beside_a_part():
    data = jpeg(60, 100)
    for box in random_boxes(60, 100, 50):
        outer = decodable(box, 100)
        size = outer.height * outer.width * 3
        memory = np.full(size + 128, 0xA5, np.uint8)
        assert jpeg_part.decode_part(data, outer, memory[64 : 64 + size])
        assert (memory[:64] == 0xA5).all() and (memory[64 + size :] == 0xA5).all()


def test_the_box_of_an_image_holds_all_its_crops_and_nothing_else():
    policy, rows = Policy.deit(32), 60
    image_of_row = np.concatenate([np.arange(20), RANDOM.integers(0, 20, rows - 20)])
    RANDOM.shuffle(image_of_row)
    counters = np.stack([np.full(rows, 3), 100 + image_of_row, np.arange(rows)], axis=-1)
    crops = RandomCrops(policy.numbers(9), counters, image_of_row)
    plan = sample_plan(policy, seed=9, epoch=3, sample=counters[:, 1], copy=counters[:, 2], height=300, width=200)
    for image in range(20):
        top, left, height, width = plan.table["box"][image_of_row == image].T
        begin, end = (top.min(), left.min()), ((top + height).max(), (left + width).max())
        assert crops.box(image, 300, 200) == Box(*begin, end[0] - begin[0], end[1] - begin[1])


def test_policies_that_crop_otherwise_have_no_box():
    counters, image_of_row = np.zeros((1, 3), np.int64), np.zeros(1, np.int64)
    for policy in (Policy.eval(32), Policy(size=32, crop="simple", pad=4)):
        assert RandomCrops(policy.numbers(0), counters, image_of_row).box(0, 100, 100) is None


def test_what_is_wanted_is_decoded_in_part_from_sound_files_and_whole_from_others(monkeypatch):
    wanted = Box(10, 40, 20, 30)
    file = io.BytesIO()
    photograph(75, 140).save(file, "PNG")
    turned = Image.Exif()
    turned[0x0112] = 6
    for data, part in [
        (jpeg(75, 140), True),
        (jpeg(75, 140, exif=turned), True),
        (jpeg(75, 140) + b"a camera's own block", False),
        (file.getvalue(), False),
    ]:
        whole = decode(data)
        got = decode_wanted(data, lambda height, width: wanted)
        assert (got.pixels.shape != whole.shape) == part
        assert (got.height, got.width) == whole.shape[:2]
        inner = wanted._replace(top=wanted.top - got.top, left=wanted.left - got.left)
        assert np.array_equal(cut(got.pixels, inner), cut(whole, wanted))
    with pytest.raises(BadImage, match="truncated"):
        decode_wanted(jpeg(75, 140)[:-2], lambda height, width: wanted)
    data = jpeg(75, 140, exif=turned)
    got = decode_wanted(data, lambda height, width: wanted, exif_orientation=True)
    assert np.array_equal(got.pixels, decode(data, exif_orientation=True))

    large = Box(0, 0, 75, int(140 * LARGE_PART) + 1)
    assert decode_wanted(data, lambda height, width: large).pixels.shape == (75, 140, 3)
    monkeypatch.setattr(sys.modules[decode.__module__], "decode", None)  # a sound file does not need it
    assert decode_wanted(jpeg(75, 140), lambda height, width: wanted).pixels.shape[0] == wanted.height


@pytest.mark.parametrize("variant", ["4:2:0", "progressive", "restart markers"])
def test_damage_gives_what_the_whole_file_gives(variant):
    """The same pixels or the same refusal, for a file cut anywhere or with bytes changed up to the part's end."""
    data = jpeg(64, 96, **VARIANTS[variant])
    damaged = [data[: RANDOM.integers(2, len(data))] for _ in range(60)]
    for _ in range(300):
        copy = bytearray(data)
        for place in RANDOM.integers(2, len(data) - 2, RANDOM.integers(1, 4)):
            copy[place] = RANDOM.integers(256)
        damaged.append(bytes(copy))
    refused = parts = 0
    for data in damaged:
        box = random_boxes(64, 96, 2)[1]
        try:
            got = decode_wanted(data, lambda height, width, box=box: box)
        except BadImage as error:
            refused += 1
            with pytest.raises(BadImage) as whole_error:
                decode(data)
            assert str(whole_error.value) == str(error)
            continue
        try:
            whole = decode(data)
        except BadImage:  # the damage lies behind the part
            assert data.endswith(b"\xff\xd9")
            continue
        if whole.shape == (64, 96, 3):
            parts += got.pixels.shape != whole.shape
            inner = box._replace(top=box.top - got.top, left=box.left - got.left)
            assert np.array_equal(cut(got.pixels, inner), cut(whole, box))
    assert refused > 20 and parts > 20


class Photographs(MemoryDataset):
    """JPEG files, but for a PNG, one with an orientation, and a truncated one."""

    def __init__(self):
        super().__init__(24)
        turned = Image.Exif()
        turned[0x0112] = 6
        for index in range(1, 24):
            height, width = map(int, RANDOM.integers(40, 120, 2))
            self.files[index] = jpeg(height, width, **(dict(exif=turned) if index == 5 else {}))
        self.files[7] = self.files[7][:-300]


@pytest.mark.parametrize("options", [{}, {"repeats": 3}, {"order": "official"}, {"exif_orientation": True}])
def test_batches_are_those_of_whole_images(monkeypatch, options):
    dataset, policy = Photographs(), replace(Policy.deit(24), mix=None)

    def batches() -> list:
        settings = dict(data_seed=5, batch_size=12, total_steps=6, threads=2)
        loader = loader_of(dataset, policy, **settings | options)
        rows = [(batch.images, batch.labels, batch.samples) for batch in loader]
        assert list(loader.bad_images) == ["image-7"]
        return rows

    decoded = []
    module = sys.modules[decode.__module__]
    monkeypatch.setattr(
        module, "decode_part", lambda *given: decoded.append(jpeg_part.decode_part(*given)) or decoded[-1]
    )
    in_part = batches()
    assert any(decoded)
    monkeypatch.setattr(jpeg_part, "_library", None)
    del decoded[:]
    whole = batches()
    assert not decoded
    for ours, theirs in zip(in_part, whole, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other)
