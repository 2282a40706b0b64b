"""The compiled binaries: what they may need, what they must not contain, and life without them."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import setuptools
import torch

from deit_fast.data import jpeg_part
from deit_kernels import _extension
from deit_kernels.augment import op as augment_op
from deit_kernels.augment.mix import MIX, MIX_NUMBERS, MODES
from deit_kernels.augment.plan import OP, ROW
from deit_kernels.augment.policy import CROPS, ERASE_MODES, FILTERS, POLICY, RANDOM_OP
from deit_kernels.augment.rand_augment import OPS
from deit_kernels.distill_loss import op as loss_op
from deit_kernels.distill_loss import reference

ROOT = Path(__file__).parents[2]
PACKAGE = Path(_extension.__file__).parent
BINARIES = sorted(PACKAGE.glob("_C*.so"))

STATISTICS = (
    "CLS_MAX", "CLS_REST", "DIST_MAX", "DIST_REST", "TEACHER_MAX", "TEACHER_REST", "TARGET_SUM", "ROW_WEIGHT",
    "TARGET_WEIGHT",
)  # fmt: skip
PART_DECODER = sorted((ROOT / "deit_fast" / "data").glob("_jpeg_part*.so"))

each_binary = pytest.mark.parametrize("binary", BINARIES or [None], ids=lambda binary: binary and binary.name)


def read_elf(binary: Path | None, *command: str) -> str:
    if binary is None:
        pytest.skip(f"{_extension.cpu_missing}")
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]} of binutils")
    return subprocess.run([*command, binary], capture_output=True, text=True, check=True).stdout


@each_binary
def test_only_c_names_of_torch_are_asked_for(binary: Path | None) -> None:
    undefined = [line.split()[-1] for line in read_elf(binary, "nm", "-D", "--undefined-only").splitlines()]
    of_torch = [name for name in undefined if re.search(r"torch|c10|N2at", name)]
    assert of_torch
    assert [name for name in of_torch if not re.match(r"(aoti_torch|torch)_[a-z0-9_]+$", name)] == []
    assert not [name for name in undefined if name.startswith(("Py", "_Py"))]


@each_binary
def test_only_the_libraries_of_the_design_are_linked_and_no_search_path_is_kept(binary: Path | None) -> None:
    dynamic = read_elf(binary, "readelf", "-d")
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    libraries = set(re.findall(r"NEEDED.*\[(?:lib)?(torch\w*|cuda\w*|c10\w*|python[\w.]*)\.so", dynamic))
    assert libraries == ({"torch_cpu", "torch_cuda", "cudart"} if "_cuda" in binary.name else {"torch_cpu"})


@pytest.mark.parametrize("binary", BINARIES + PART_DECODER, ids=lambda binary: binary.name)
def test_no_path_of_the_build_is_left(binary: Path) -> None:
    content = binary.read_bytes()
    for path in (ROOT, Path(torch.__file__).parents[1], Path.home(), Path(sys.prefix)):
        assert str(path).encode() not in content


def without_binaries(folder: Path) -> Path:
    """A copy of the package without what is compiled."""
    return shutil.copytree(PACKAGE, folder / "deit_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))


def run_python(program: str, *path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), **environment}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)


DIGEST = """
import hashlib, numpy as np
from deit_kernels.augment import ImageBatch, Policy, apply, sample_plan
images = [np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), dtype=np.uint8) for i in range(3)]
batch = ImageBatch.from_images(images)
plan = sample_plan(Policy.deit(32), seed=1, epoch=2, sample=[3, 4, 5], copy=0, height=[40, 41, 42], width=50)
print(hashlib.sha256(plan.rows.numpy().tobytes() + apply(batch, plan).numpy().tobytes()).hexdigest())
"""


LOSS = """
import torch
from deit_kernels import cross_entropy
logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
cross_entropy(logits, torch.tensor([1])).backward()
print(logits.grad, torch._C._dispatch_has_kernel_for_dispatch_key("deit_kernels::distillation_loss_forward", "CPU"))
"""


@pytest.fixture(scope="module")
def here() -> str:
    """What the two programs print with the package as it is."""
    return run_python(DIGEST + LOSS, PACKAGE.parent).stdout


def test_without_binaries_one_warning_and_the_same_pixels(tmp_path: Path, here: str) -> None:
    without_binaries(tmp_path)
    without = run_python(DIGEST + LOSS, tmp_path)
    assert without.returncode == 0, without.stderr
    assert without.stdout == here.replace("True", "False")
    assert without.stderr.count("UserWarning") == 1
    assert "deit_kernels augments in NumPy" in without.stderr
    assert "type in a clone of deit-fast: pip install -e ./kernels" in without.stderr


def test_a_binary_that_does_not_load_is_a_warning_that_names_it(tmp_path: Path) -> None:
    without_binaries(tmp_path)
    (tmp_path / "deit_kernels" / "_C.abi3.so").write_bytes(b"not a binary")
    broken = run_python(DIGEST, tmp_path)
    assert broken.returncode == 0, broken.stderr
    assert "_C.abi3.so does not load" in broken.stderr


def test_a_gpu_extension_for_another_cuda_names_both_versions_at_the_first_call(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "deit_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "deit_kernels" / "_C_cuda.cu13.abi3.so").touch()
    program = "import torch; torch.version.cuda = '12.8'; from deit_kernels.augment import op; op._no_cuda()"
    assert run_python(program, tmp_path).stderr.splitlines()[-1] == (
        "RuntimeError: augmenting on CUDA: _C_cuda.cu13.abi3.so is built for CUDA 13, this torch for CUDA 12.8; to "
        "build it, type in a clone of deit-fast: pip install -e ./kernels  (needs nvcc 12 and a C++20 compiler). "
        "Until then call apply on CPU tensors"
    )


def build(python: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [python, "setup.py", "build_ext", f"--build-lib={folder}/lib", f"--build-temp={folder}/temp"]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)


def test_a_failing_compiler_does_not_fail_the_install(tmp_path: Path) -> None:
    done = build(sys.executable, tmp_path, CXX="false")
    assert done.returncode == 0, done.stderr
    assert "deit_kernels._C is not built: the command printed above failed, false" in done.stderr
    assert "Augmentation runs in NumPy instead: exact, but many times slower." in done.stderr
    assert "deit_fast.data._jpeg_part is not built: the command printed above failed, false" in done.stderr
    assert "The whole of every JPEG file is decoded, also where a crop of it would do." in done.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_the_part_decoder_is_there_wherever_it_can_be_built() -> None:
    """Its own tests are skipped without it, and nobody would notice."""
    named = (os.environ.get("CXX"), "g++", "clang++", "c++")  # in the order of setup.py
    compiler = next((name.split() for name in named if name and shutil.which(name.split()[0])), None)
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    header = "#include <cstdio>\n#include <jpeglib.h>\nstatic_assert(LIBJPEG_TURBO_VERSION_NUMBER >= 2001005);\n"
    command = [*compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    if subprocess.run(command, input=header, capture_output=True, text=True).returncode:
        pytest.skip("needs jpeglib.h of libjpeg-turbo 2.1.5")
    assert not jpeg_part.missing, jpeg_part.missing


@pytest.mark.parametrize("binary", PART_DECODER, ids=lambda binary: binary.name)
def test_the_part_decoder_needs_libjpeg_and_shows_two_functions(binary: Path) -> None:
    dynamic = read_elf(binary, "readelf", "-d")
    assert set(re.findall(r"NEEDED.*\[lib(\w+)\.so", dynamic)) <= {"jpeg", "c", "m", "stdc++", "gcc_s"}
    defined = read_elf(binary, "nm", "-D", "--defined-only").splitlines()
    assert {line.split()[-1] for line in defined} == {"deit_random_box", "deit_decode_jpeg_part"}


def test_an_install_without_a_compiler_says_what_to_type(tmp_path: Path) -> None:
    done = build(sys.executable, tmp_path, PATH=str(tmp_path), CXX="")
    assert done.returncode == 0, done.stderr
    assert "deit_kernels._C is not built: no C++ compiler found; install g++" in done.stderr


def test_an_install_without_torch_says_what_to_type(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    (tmp_path / "path").mkdir()
    for package in ("setuptools", "_distutils_hack"):
        (tmp_path / "path" / package).symlink_to(Path(setuptools.__file__).parents[1] / package)
    python = str(tmp_path / "venv" / "bin" / "python")
    done = build(python, tmp_path, PYTHONPATH=str(tmp_path / "path"), PYTHONNOUSERSITE="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("torch is not installed; install torch>=2.11 first") >= 2


def test_asking_for_metadata_imports_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv = ['setup.py', '--name']; import runpy; runpy.run_path('setup.py', run_name='__main__');"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deit-fast" in done.stdout


@pytest.mark.slow
def test_a_build_from_scratch_gives_working_binaries(tmp_path: Path, here: str) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    done = build(sys.executable, tmp_path)
    assert done.returncode == 0, done.stderr
    package = without_binaries(tmp_path / "package")
    for binary in (tmp_path / "lib" / "deit_kernels").glob("*.so"):
        shutil.copy(binary, package)
    fresh = run_python(DIGEST + LOSS, package.parent)
    assert fresh.returncode == 0, fresh.stderr
    assert fresh.stdout == here
    assert "UserWarning" not in fresh.stderr


NOW = str(_extension.INTERFACE)

needs_binary = pytest.mark.skipif(_extension.cpu_missing is not None, reason=f"{_extension.cpu_missing}")


def rebuilt_for(interface: int, binary: Path, target: Path) -> None:
    """A copy of a binary that says it was built for another interface."""
    now, other = (f"deit_kernels interface {number};".encode() for number in (NOW, f"{interface:0{len(NOW)}}"))
    content = binary.read_bytes()
    assert content.count(now) == 1
    assert len(now) == len(other)
    target.write_bytes(content.replace(now, other))


@needs_binary
def test_a_binary_of_another_interface_is_named_and_left_alone(tmp_path: Path, here: str) -> None:
    """All ops then run as without a binary; none of it is registered."""
    binary = without_binaries(tmp_path) / "_C.abi3.so"
    for interface, age in ((10 ** len(NOW) - 1, "newer"), (0, "older")):
        rebuilt_for(interface, PACKAGE / "_C.abi3.so", binary)
        reason = (
            f"_C.abi3.so is {age} than its Python code (built for interface {interface}, "
            f"needed is {_extension.INTERFACE})"
        )
        assert _extension.other_interface(binary) == reason
    other = run_python(DIGEST + LOSS, tmp_path)
    assert other.returncode == 0, other.stderr
    assert other.stdout == here.replace("True", "False")
    assert other.stderr.count("UserWarning") == 1 and reason in other.stderr


@pytest.mark.parametrize("number", ["DEIT_INTERFACE;", "1", "", "-1;"])
def test_a_mark_without_a_number_is_older(number: str, tmp_path: Path) -> None:
    binary = tmp_path / "_C.abi3.so"
    binary.write_bytes(b"\x7fELF" + bytes(60) + f"deit_kernels interface {number}".encode())
    assert "is older than its Python code (built for interface 0, " in _extension.other_interface(binary)


@needs_binary
def test_a_binary_that_is_cut_short_is_no_older_one_and_does_not_end_the_process(tmp_path: Path) -> None:
    """The loader maps what is not there: without the check most of these end the process."""
    binary = without_binaries(tmp_path) / "_C.abi3.so"
    for kept in (20, 1000, 400_000, -1, -3000):
        binary.write_bytes((PACKAGE / "_C.abi3.so").read_bytes()[:kept])
        with pytest.raises(OSError, match="the file is cut short"):
            _extension.other_interface(binary)
    cut = run_python(DIGEST, tmp_path)
    assert cut.returncode == 0, cut.stderr
    assert "_C.abi3.so does not load (the file is cut short)" in cut.stderr
    assert "older" not in cut.stderr


@pytest.mark.parametrize("binary", PART_DECODER, ids=lambda binary: binary.name)
def test_a_part_decoder_of_another_interface_is_named(binary: Path, tmp_path: Path) -> None:
    shutil.copy(jpeg_part.__file__, tmp_path)
    rebuilt_for(0, binary, tmp_path / binary.name)
    run = run_python("import jpeg_part; print(jpeg_part.missing)", tmp_path, PACKAGE.parent)
    assert f"{binary.name} is older than its Python code" in run.stdout
    assert "type: pip install -e .  (needs a C++20 compiler and libjpeg-turbo" in run.stdout


@needs_binary
def test_a_loaded_binary_implements_every_op() -> None:
    for name in (*augment_op._OPS, *loss_op._SCHEMAS):
        op = f"deit_kernels::{name.removeprefix('deit_kernels::')}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CPU"), op


def test_another_interface_has_another_number() -> None:
    """What C++ reads of Python. When this fails, raise INTERFACE in _extension.py and write it here with the digest."""
    records = [OP, ROW, MIX, MIX_NUMBERS, RANDOM_OP, POLICY]
    numbers = [OPS, FILTERS, CROPS, ERASE_MODES, MODES, augment_op.LAYOUTS]
    columns = [(name, getattr(reference, name)) for name in STATISTICS]
    schemas = {name: op.schema for name, op in augment_op._OPS.items()}
    whole = [schemas, loss_op._SCHEMAS, [record.descr for record in records], numbers, columns]
    assert {_extension.INTERFACE: hashlib.sha256(repr(whole).encode()).hexdigest()[:16]} == {5: "d619b98d7e06771e"}
