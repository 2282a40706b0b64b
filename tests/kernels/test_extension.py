"""The compiled binaries: what they may need, what they must not contain, and life without them."""

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

ROOT = Path(__file__).parents[2]
PACKAGE = Path(_extension.__file__).parent
BINARIES = sorted(PACKAGE.glob("_C*.so"))

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


def test_without_binaries_one_warning_and_the_same_pixels(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "deit_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    without, here = run_python(DIGEST, tmp_path), run_python(DIGEST, PACKAGE.parent)
    assert without.returncode == 0, without.stderr
    assert without.stdout == here.stdout
    assert without.stderr.count("UserWarning") == 1
    assert "deit_kernels augments in NumPy" in without.stderr
    assert "pip install -e ." in without.stderr


def test_a_binary_that_does_not_load_is_a_warning_that_names_it(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "deit_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "deit_kernels" / "_C.abi3.so").write_bytes(b"not a binary")
    broken = run_python(DIGEST, tmp_path)
    assert broken.returncode == 0, broken.stderr
    assert "_C.abi3.so does not load" in broken.stderr


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
def test_a_build_from_scratch_gives_working_binaries(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    done = build(sys.executable, tmp_path)
    assert done.returncode == 0, done.stderr
    package = tmp_path / "package" / "deit_kernels"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for binary in (tmp_path / "lib" / "deit_kernels").glob("*.so"):
        shutil.copy(binary, package)
    fresh, here = run_python(DIGEST, package.parent), run_python(DIGEST, PACKAGE.parent)
    assert fresh.returncode == 0, fresh.stderr
    assert fresh.stdout == here.stdout
    assert "UserWarning" not in fresh.stderr


@pytest.mark.skipif(_extension.cpu_missing is not None, reason=f"{_extension.cpu_missing}")
def test_an_extension_older_than_the_python_code_is_named_at_import(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "deit_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    op = tmp_path / "deit_kernels" / "augment" / "op.py"
    op.write_text(op.read_text().replace("_augment_sample_mix", "_augment_sample_mixes"))
    run = run_python("import deit_kernels", tmp_path)
    assert run.returncode == 1
    assert "has no deit_kernels::_augment_sample_mixes for CPU; to rebuild it, type: pip install -e ." in run.stderr
