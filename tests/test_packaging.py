"""The wheel: built from the tracked files, installed into an empty environment without a compiler, used elsewhere."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

PROGRAM = """
import sys, warnings
warnings.simplefilter("error", UserWarning)
import torch
from deit_kernels import attention_qkvpacked, augment, distillation_loss
import deit_kernels
assert deit_kernels.__file__.startswith(sys.prefix), deit_kernels.__file__
assert deit_kernels._extension.cpu_missing is None
print("triton" in sys.modules)  # torch.compile, below, imports it
qkv = torch.randn(2, 5, 3, 2, 8, requires_grad=True)
cls_logits, dist_logits = (torch.randn(4, 10, requires_grad=True) for _ in range(2))
def step(qkv, cls_logits, dist_logits, teacher, labels):
    return attention_qkvpacked(qkv).sum() + distillation_loss(cls_logits, dist_logits, teacher, labels)
step = torch.compile(step, fullgraph=True, backend="aot_eager")
step(qkv, cls_logits, dist_logits, torch.randn(4, 10), torch.arange(4)).backward()
assert all(leaf.grad.isfinite().all() for leaf in (qkv, cls_logits, dist_logits))
batch = augment.ImageBatch.from_images([torch.zeros(20, 30, 3, dtype=torch.uint8)])
plan = augment.sample_plan(augment.Policy.deit(8), seed=0, epoch=0, sample=[0], copy=0, height=20, width=30)
print(tuple(augment.apply(batch, plan).shape))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=folder / "source", check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_serves_every_python_and_holds_what_users_import(wheel: Path) -> None:
    assert "-cp310-abi3-linux" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("deit_kernels/py.typed", "deit_fast/py.typed", "deit_fast/train.py", "deit_kernels/_C.abi3.so"):
        assert needed in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    tops = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert tops == {"deit_kernels", "deit_fast"}


def test_the_ops_work_in_an_empty_environment_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    (site_packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    # torch and numpy come from here (gigabytes); a path entry does not bring the editable install along.
    (site_packages / "torch.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, text=True)
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [str(python), "-c", PROGRAM],
        cwd=tmp_path / "elsewhere",
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n(1, 3, 8, 8)\n"
