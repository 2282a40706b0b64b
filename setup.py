"""Builds the compiled part of deit_kernels; everything else about the package stands in pyproject.toml.

    pip install -e .                                        # finds the torch of the environment, also under isolation
    pip install --no-build-isolation --no-deps -e .         # off-line

Two binaries, each serving every CPython with a GIL and every torch from 2.11 on (LibTorch stable ABI, no Python API):

    deit_kernels/_C.abi3.so               augmentation on the CPU; needs g++ or clang++ with C++20
    deit_kernels/_C_cuda.cu<N>.abi3.so    on NVIDIA GPUs; needs nvcc of the CUDA version N that torch was built for

Building needs no GPU and takes under a minute. What cannot be built is named with what to type, and left out: the
package then works without it. torch is no build requirement, since pip would download it a second time, and is not
imported. pip shows what is printed here with -v.
"""

from __future__ import annotations

import functools
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

OLDEST_TORCH = (2, 11)
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10
CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", STABLE_ABI]
EXACT = "-ffp-contract=off"  # a fused multiply-add rounds once where Pillow and NumPy round twice
GPUS = ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_100,code=[sm_100,compute_100]"]


class Torch(NamedTuple):
    folder: Path
    version: str
    cuda: str | None

    @property
    def lib(self) -> Path:
        return self.folder / "lib"


class Toolkit(NamedTuple):
    home: Path
    version: str


@functools.cache
def find_torch() -> Torch:
    """The torch of this environment, found without importing it. Build isolation hides it from sys.path only."""
    spec = PathFinder.find_spec("torch", [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    if spec is None or spec.origin is None:
        raise CompileError("torch is not installed; install torch>=2.11 first, then repeat this install")
    folder = Path(spec.origin).parent
    version = runpy.run_path(str(folder / "version.py"))
    found = Torch(folder, str(version["__version__"]), version["cuda"])
    if tuple(int(part) for part in found.version.split(".")[:2]) < OLDEST_TORCH:
        raise CompileError(f"torch {found.version} is too old; install torch>=2.11, then repeat this install")
    return found


@functools.cache
def find_toolkit() -> Toolkit:
    """The CUDA toolkit: CUDA_HOME or CUDA_PATH, else the nvcc on PATH, else /usr/local/cuda."""
    on_path = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    # An nvcc on PATH may be a wrapper script, whose parent folder holds no toolkit: the headers tell.
    homes += [Path(on_path).resolve().parent.parent if on_path else None, "/usr/local/cuda"]
    for home in (Path(candidate) for candidate in homes if candidate):
        if (home / "bin/nvcc").is_file() and (home / "include/cuda_runtime.h").is_file():
            text = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True, check=True).stdout
            return Toolkit(home, re.search(r"release (\d+\.\d+)", text).group(1))
    raise CompileError("no CUDA toolkit found (nvcc and cuda_runtime.h); install one or set CUDA_HOME to it")


def major(version: str) -> str:
    return version.split(".")[0]


def compiler() -> str:
    """The C++ compiler: CXX, else g++, else clang++, else c++."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name.split()[0]):
            return name
    raise CompileError("no C++ compiler found; install g++ (Debian, Ubuntu: apt install g++) or set CXX")


CONSEQUENCE = {
    "deit_kernels._C": "Augmentation runs in NumPy instead: exact, but many times slower.",
    "deit_kernels._C_cuda": "Augmentation runs on the CPU only.",
}


class BuildExtensions(build_ext):
    """Compiles with plain commands; the extensions are optional, so setuptools goes on when one of them fails."""

    def get_ext_filename(self, fullname: str) -> str:
        suffix = ".abi3.so"
        if fullname.endswith("_cuda"):
            try:
                suffix = f".cu{major(find_toolkit().version)}.abi3.so"
            except CompileError:
                suffix = ".none.abi3.so"  # is not going to be built
        return fullname.replace(".", "/") + suffix

    def build_extension(self, ext: Extension) -> None:
        try:
            if sys.platform != "linux":
                raise CompileError(f"{sys.platform} is not supported, only Linux is")
            self.compile(ext)
        except (CompileError, OSError) as error:
            print(f"\n{ext.name} is not built: {error}\n{CONSEQUENCE[ext.name]}\n", file=sys.stderr)
            raise CompileError(str(error)) from error

    def compile(self, ext: Extension) -> None:
        torch, cuda = find_torch(), ext.name.endswith("_cuda")
        if cuda and torch.cuda is None:
            raise CompileError(f"torch {torch.version} is a build without CUDA")
        toolkit = find_toolkit() if cuda else None
        if toolkit and major(toolkit.version) != major(torch.cuda):
            raise CompileError(
                f"nvcc is {toolkit.version}, torch {torch.version} was built for CUDA {torch.cuda}; "
                f"set CUDA_HOME to a toolkit {major(torch.cuda)}"
            )
        objects = Path(self.build_temp) / ext.name
        objects.mkdir(parents=True, exist_ok=True)
        # No path of this machine ends up in the binary, not even in an error message of torch's headers.
        maps = [f"-ffile-prefix-map={torch.folder}=torch", f"-ffile-prefix-map={Path.cwd()}=."]
        cxx = [*compiler().split(), *CXX_FLAGS, EXACT, *maps, "-isystem", str(torch.folder / "include"), "-c"]
        libraries = [f"-L{torch.lib}", "-ltorch_cpu"]
        if toolkit:
            cxx += ["-DDEIT_CUDA", "-DUSE_CUDA"]  # USE_CUDA opens the CUDA part of torch's C interface
            host = ",".join(["-fPIC", "-fvisibility=hidden", EXACT, *maps])
            nvcc = [str(toolkit.home / "bin/nvcc"), "-std=c++20", "-O3", "-fmad=false", "-cudart", "shared"]
            nvcc += [*(f"-gencode={gpu}" for gpu in GPUS), "-Xcompiler", host, "-ccbin", compiler().split()[0], "-c"]
            libraries += ["-ltorch_cuda", f"-L{toolkit.home / 'lib64'}", "-lcudart"]
        commands = [
            [*(nvcc if source.endswith(".cu") else cxx), source, "-o", str(objects / f"{Path(source).stem}.o")]
            for source in ext.sources
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, commands))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        inputs = [command[-1] for command in commands]
        run([*compiler().split(), "-shared", "-s", *inputs, "-o", str(target), "-Wl,--as-needed", *libraries])


def run(command: list[str]) -> None:
    """One command, shown; its output is shown too when it fails."""
    print(" ".join(command))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.stdout:
        print(done.stdout, file=sys.stderr)
    if done.returncode:
        raise CompileError(f"{command[0]} failed on {command[-3]}")


HEADERS = sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.cuh", recursive=True))
GIL_DISABLED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

setup(
    ext_modules=[
        Extension("deit_kernels._C", ["csrc/ops.cpp", "csrc/augment_cpu.cpp"], depends=HEADERS, optional=True),
        Extension("deit_kernels._C_cuda", ["csrc/ops.cpp", "csrc/augment_cuda.cu"], depends=HEADERS, optional=True),
    ],
    cmdclass={"build_ext": BuildExtensions},
    # The limited-API tag does not exist for a CPython without a GIL.
    options={} if GIL_DISABLED else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
