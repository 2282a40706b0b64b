"""Damaged input of every kind, thousands of times: a named error or a correct read, never a crash, a hang or growth.

    python -m tests.chaos.fuzz images 10000        # kind and number of cases; the seed is fixed
    python -m tests.chaos.fuzz all 2000

Prints what came of the cases. A case may raise ValueError or OSError with a text; anything else ends the program with
the kind, the seed and the case, as does a case that takes more than CASE_SECONDS.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import logging
import os
import random
import resource
import sys
import tarfile
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deit_fast.data import Dataset

CASE_SECONDS = 60
MOST_GROWTH = 400 << 20  # bytes of resident memory between a fifth of the cases and the end
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
Case = Callable[[random.Random], str]


def mutated(data: bytes, draw: random.Random, other: bytes) -> bytes:
    """`data` with one to four kinds of damage; `other` lends parts."""
    content = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        if not content:
            return b""
        place = draw.randrange(len(content)) if draw.random() < 0.6 else draw.randrange(min(len(content), 256))
        kind = draw.randrange(7)
        if kind == 0:
            content[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            content[place : place + draw.randrange(1, 16)] = draw.randbytes(draw.randrange(1, 16))
        elif kind == 2:
            del content[place:]
        elif kind == 3:
            del content[place : place + draw.randrange(1, 200)]
        elif kind == 4:
            size = draw.choice((1, 2, 4, 8))
            number = draw.choice(NUMBERS) & ((1 << 8 * size) - 1)
            content[place : place + size] = number.to_bytes(size, draw.choice(("little", "big")))
        elif kind == 5:
            start = draw.randrange(len(content))
            content[place:place] = content[start : start + draw.randrange(1, 400)]
        else:
            start = draw.randrange(len(other))
            content[place : place + draw.randrange(1, 64)] = other[start : start + draw.randrange(1, 64)]
    return bytes(content)


def image_files() -> list[bytes]:
    """Small files of every format and colour mode that data sets hold."""
    pixels = np.random.default_rng(0).integers(0, 256, (23, 31, 3), np.uint8)
    image = Image.fromarray(pixels)
    ways: list[tuple[str, str, dict]] = [
        ("JPEG", "RGB", {"quality": 90}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "RGB", {"exif": _turned(image)}),
        ("WEBP", "RGB", {"lossless": True}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ]
    plain = ("JPEG L", "JPEG CMYK", "PNG RGB", "PNG P", "PNG RGBA", "PNG 1", "PNG I;16", "GIF P", "BMP RGB", "WEBP RGB")
    ways += [(*way.split(), {}) for way in (*plain, "TIFF L", "PPM RGB")]
    files = []
    for name, mode, options in ways:
        file = io.BytesIO()
        (image.convert("L") if mode == "I;16" else image).convert(mode).save(file, name, **options)
        files.append(file.getvalue())
    return files


def _turned(image: Image.Image) -> Image.Exif:
    exif = image.getexif()
    exif[0x0112] = 6
    return exif


def images(_folder: Path) -> Case:
    """Decode, plan, augment: what a training batch does with a file."""
    from deit_fast.data import BadImage, decode
    from deit_kernels.augment import ImageBatch, Policy, apply, sample_plan

    files, policy = image_files(), Policy.deit(16)

    def case(draw: random.Random) -> str:
        data = mutated(draw.choice(files), draw, draw.choice(files))
        try:
            pixels = decode(data, exif_orientation=draw.random() < 0.3)
        except BadImage:
            return "bad image"
        assert pixels.shape[2] == 3 and pixels.dtype == np.uint8 and pixels.size
        batch = ImageBatch.from_images([pixels])
        row = np.array([draw.randrange(1000)])
        sides = batch.height.numpy(), batch.width.numpy()
        plan = sample_plan(
            policy, seed=1, epoch=0, sample=row, copy=np.zeros(1, np.int64), height=sides[0], width=sides[1]
        )
        out = apply(batch, plan.place(batch), dtype=torch.float32)
        assert out.isfinite().all()
        return "read"

    return case


def tars(folder: Path) -> Case:
    """Open a shard, read and decode every image of it."""
    from deit_fast.data.sources.shards import TarShards

    files = image_files()
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for index, data in enumerate(files[:6]):
            for name, content in ((f"{index:03}.jpg", data), (f"{index:03}.cls", str(index % 3).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    whole, path = shard.getvalue(), folder / "shard.tar"

    def case(draw: random.Random) -> str:
        data = mutated(whole, draw, whole)
        if draw.random() < 0.5:  # a header is 512 bytes of a shard of many
            start = 512 * draw.randrange(len(whole) // 512)
            data = (
                whole[:start]
                + mutated(whole[start : start + 512], draw, whole).ljust(512, b"\0")[:512]
                + whole[start + 512 :]
            )
        path.write_bytes(data)
        dataset = TarShards([path], "fuzz")
        return read_all(dataset)

    return case


def read_all(dataset: Dataset) -> str:
    """Read and decode every image; what came of it."""
    from deit_fast.data import BadImage, decode

    outcome = "read"
    for index in range(len(dataset)):
        try:
            decode(dataset.read(index))
        except (BadImage, OSError) as error:
            assert str(error)
            outcome = "bad image"
    return outcome


def parquets(folder: Path) -> Case:
    """Open a parquet file, read and decode every row of it."""
    import pyarrow as pa
    from pyarrow import parquet

    from deit_fast.data.sources.parquet import ParquetRows

    files, path = image_files()[:6], folder / "rows.parquet"
    table = pa.table({"image": [{"bytes": data, "path": None} for data in files], "label": [0, 1, 2, 0, 1, 2]})
    parquet.write_table(table, path, row_group_size=3)
    whole = path.read_bytes()

    def case(draw: random.Random) -> str:
        path.write_bytes(mutated(whole, draw, whole))
        dataset = ParquetRows([path], "fuzz")
        return read_all(dataset)

    return case


def checkpoints(folder: Path) -> Case:
    """Find the newest whole checkpoint of a run in which one file is damaged, and load it."""
    from deit_fast.run import checkpoint

    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    for step in (1, 2):
        checkpoint.save(folder, step, checkpoint.tensors_of(model, None, optimizer), {"seconds": 1.0}, keep=2)
    whole = {path: path.read_bytes() for path in (folder / "checkpoints").rglob("*") if path.is_file()}

    def case(draw: random.Random) -> str:
        path = draw.choice(sorted(whole))
        path.write_bytes(mutated(whole[path], draw, whole[path]))
        damaged = path.read_bytes() != whole[path]
        try:
            found = checkpoint.newest(folder)
            assert found is not None
            assert not damaged or path.parent != found or path.name == "state.json", "damage went unnoticed"
            checkpoint.load(found, model, None, optimizer)
            return f"continues from {found.name}"
        finally:
            path.write_bytes(whole[path])

    return case


def weights(folder: Path) -> Case:
    """Read a foreign weights file, .pth or .safetensors."""
    from safetensors.torch import save_file

    from deit_fast.weights.pretrained import read_weights

    model = torch.nn.Linear(3, 4)
    torch.save({"model": model.state_dict()}, folder / "zip.pth")
    torch.save({"model": model.state_dict()}, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(model.state_dict(), folder / "weights.safetensors")
    whole = {path: path.read_bytes() for path in sorted(folder.iterdir())}

    def case(draw: random.Random) -> str:
        path = draw.choice(sorted(whole))
        data = mutated(whole[path], draw, whole[path])
        target = folder / f"damaged{path.suffix}"
        target.write_bytes(data)
        read = read_weights(target)
        assert all(isinstance(value, torch.Tensor) for value in read.values())
        return "read"

    return case


def caches(folder: Path) -> Case:
    """Read back an index of a data set; a damaged one is made again."""
    from deit_fast.data.sources.index import Names, load_arrays, save_arrays

    names = Names.of(f"{index}.jpg" for index in range(50))
    arrays = {"size": np.arange(50), "names_text": names.text, "names_ends": names.ends}
    save_arrays(folder / "index.npz", arrays)
    whole = (folder / "index.npz").read_bytes()

    def case(draw: random.Random) -> str:
        (folder / "index.npz").write_bytes(mutated(whole, draw, whole))
        read = load_arrays(folder / "index.npz")
        if read is None:
            return "made again"
        for name, values in read.items():
            assert name not in arrays or np.array_equal(values, arrays[name]), "damage went unnoticed"
        return "read"

    return case


def run_folders(folder: Path) -> Case:
    """Open a run folder whose JSON files are damaged."""
    from deit_fast.config import Config
    from deit_fast.run.folder import check_data, open_run
    from deit_fast.run.metrics import Metrics

    config = Config(data="photos", distill="none", out=str(folder / "run"))
    data = {"classes": ["a", "b"], "train": 5, "val": 3, "labels": "0" * 64}
    files = {
        "config.json": config.flat(), "data.json": data,
        "summary.json": {"teacher": None, "student": {"cls": {"top1": 1.0}}, "ema": None},
    }  # fmt: skip
    whole = {name: json.dumps(value).encode() for name, value in files.items()}
    whole["metrics.jsonl"] = b"".join(json.dumps({"step": step, "loss": 0.5}).encode() + b"\n" for step in range(9))
    run = folder / "run"
    run.mkdir()

    def case(draw: random.Random) -> str:
        name = draw.choice(sorted(whole))
        for other, content in whole.items():
            (run / other).write_bytes(mutated(content, draw, content) if other == name else content)
        if name != "summary.json":
            (run / "summary.json").unlink()
        open_run(config, run)
        check_data(run, data)
        Metrics(run / "metrics.jsonl", 5)
        return "read"

    return case


KINDS = {each.__name__: each for each in (images, tars, parquets, checkpoints, weights, caches, run_folders)}


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def run(kind: str, cases: int, seed: int = 0) -> Counter:
    """Run the cases of one kind; returns how often each outcome occurred."""
    outcomes: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        case = KINDS[kind](Path(folder))
        settled = 0
        for index in range(cases):
            faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
            try:
                outcome = case(random.Random(f"{kind} {seed} {index}"))
            except (ValueError, OSError) as error:
                # One of ours or the system's: a UnicodeDecodeError is a ValueError as well, and says nothing to a user.
                assert str(error) and not isinstance(error, (UnicodeError, json.JSONDecodeError)), repr(error)
                outcome = f"refused, {type(error).__name__}"
            except BaseException as error:
                raise AssertionError(f"{kind}, seed {seed}, case {index}: {type(error).__name__}: {error}") from error
            outcomes[outcome] += 1
            if index == cases // 5:
                settled = resident()
        faulthandler.cancel_dump_traceback_later()
        grown = resident() - settled
        assert grown < MOST_GROWTH, f"{kind}: grew by {grown >> 20} MiB"
    return outcomes


def kinds(name: str) -> Iterator[str]:
    yield from KINDS if name == "all" else [name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=[*KINDS, "all"])
    parser.add_argument("cases", type=int)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for kind in kinds(chosen.kind):
        print(kind, dict(run(kind, chosen.cases, chosen.seed)), flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
