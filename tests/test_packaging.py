"""The wheel: built from the tracked files, installed into an empty environment without a compiler, used elsewhere."""

import re
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


def tracked_files() -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked_files():
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
    assert "deit_kernels/_C.abi3.so" in names
    templates = "deit_fast/tools/report/templates"
    assert {f"{templates}/{file}" for file in ("page.html.j2", "style.css", "page.js")} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    tops = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert tops == {"deit_kernels", "deit_fast"}


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    sources = {name.removeprefix("kernels/") for name in tracked_files()}
    packaged = {name for name in sources if name.startswith(("deit_fast/", "deit_kernels/"))}
    assert {"deit_fast/py.typed", "deit_kernels/py.typed", "deit_kernels/augment/reference/mix.py"} <= packaged
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name for name in names if not name.endswith(".so")} == packaged


def compiled(folder: Path) -> list[str]:
    """The sources that a build in this folder compiles."""
    command = [sys.executable, "setup.py", "build_ext", f"--build-lib={folder.parent / 'lib'}"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    assert " is not built: " not in done.stderr.replace("deit_kernels._C_cuda is not built: ", "")
    return sorted(re.findall(r" -c (csrc/\S+) ", done.stderr))


def test_a_change_compiles_only_what_it_touches(wheel: Path) -> None:
    folder = wheel.parent / "source"
    assert compiled(folder) == [], "all that the wheel was built of is there"
    for changed, sources in {"cpu/weights.cpp": ["cpu/weights.cpp"], "cpu/look_up.h": ["cpu/finish.cpp"]}.items():
        (folder / "csrc" / changed).touch()
        assert compiled(folder) == [f"csrc/{source}" for source in sources]
    assert compiled(folder) == []


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
