"""Compiles the binaries of both packages; all else about them stands in pyproject.toml and kernels/pyproject.toml.

    pip install -e ./kernels -e .             # finds the torch of the environment, also under isolation
    pip install --no-build-isolation --no-deps -e ./kernels -e .      # off-line
    python setup.py build_ext --inplace     # the binaries alone, of both packages

kernels/setup.py runs this file for deit_kernels. It has two binaries, each serving every CPython with a GIL and every
torch from 2.11 on (LibTorch stable ABI, no Python API):

    deit_kernels/_C.abi3.so               augmentation and losses on the CPU; needs g++ or clang++ with C++20
    deit_kernels/_C_cuda.cu<N>.abi3.so    augmentation on NVIDIA GPUs; needs nvcc of the CUDA version N of that torch

deit_fast has one, without torch:

    deit_fast/data/_jpeg_part.abi3.so     decodes parts of JPEG files; needs libjpeg-turbo and its jpeglib.h, and at run
                                          time the same libjpeg.so, without which whole files are decoded

Building needs no GPU and takes under a minute. ninja compiles in parallel, and later only what changed; its files and
the objects lie in build/ninja. What cannot be built is named with what to type, and left out: the package then works
without it. torch is no build requirement, since pip would download it a second time, and is not imported. pip -v shows
what is printed here.
"""

from __future__ import annotations

import functools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError, SetupError

ROOT = Path(__file__).resolve().parent  # paths of sources are relative to it, whichever package is built
BY_NAME = "build_ext" in sys.argv

OLDEST_TORCH = (2, 11)
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10
EXACT = "-ffp-contract=off"  # a fused multiply-add rounds once where Pillow and NumPy round twice; -fmad=false likewise
# sqrt and rint as single instructions; nothing reads errno or floating-point traps.
VECTOR = ["-fno-math-errno", "-fno-trapping-math"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi"]  # vectors are passed between functions that are always inlined
CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", *WARNINGS, EXACT, *VECTOR]
NVCC_FLAGS = ["-std=c++20", "-O3", "-fmad=false", "-cudart=shared"]


class Torch(NamedTuple):
    folder: Path
    version: str
    cuda: str | None


class Toolkit(NamedTuple):
    home: Path
    version: str

    @property
    def architectures(self) -> list[str]:
        """A100, H100 and, from CUDA 12.8 on, B200; PTX of the newest for whatever comes after."""
        numbers = [80, 90, 100] if numeric(self.version) >= (12, 8) else [80, 90]
        newest = f"-gencode=arch=compute_{numbers[-1]},code=compute_{numbers[-1]}"
        return [*(f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers), newest]


def numeric(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


@functools.cache
def find_torch() -> Torch:
    """The torch of this environment, found without importing it. Build isolation hides it from sys.path only."""
    spec = PathFinder.find_spec("torch", [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    if spec is None or spec.origin is None:
        raise CompileError("torch is not installed; install torch>=2.11 first, then repeat this install")
    folder = Path(spec.origin).parent
    version = runpy.run_path(str(folder / "version.py"))
    found = Torch(folder, str(version["__version__"]), version["cuda"])
    if numeric(found.version) < OLDEST_TORCH:
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
            text = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True).stdout
            if release := re.search(r"release (\d+\.\d+)", text):
                return Toolkit(home, release.group(1))
    raise CompileError("no CUDA toolkit found (nvcc and cuda_runtime.h); install one or set CUDA_HOME to it")


def find_matching_toolkit(torch: Torch) -> Toolkit:
    if torch.cuda is None:
        raise CompileError(f"torch {torch.version} is a build without CUDA")
    toolkit, (major, _) = find_toolkit(), numeric(torch.cuda)
    if numeric(toolkit.version)[0] != major:
        raise CompileError(
            f"the toolkit in {toolkit.home} is CUDA {toolkit.version}, torch {torch.version} was built for CUDA "
            f"{torch.cuda}; set CUDA_HOME to a toolkit {major}"
        )
    return toolkit


def interface() -> str:
    """The number by which Python knows that a binary was built for it."""
    code = (ROOT / "kernels/deit_kernels/_extension.py").read_text()
    return re.search(r"^INTERFACE = (\d+)$", code, re.MULTILINE).group(1)


def compiler() -> list[str]:
    """The C++ compiler: CXX, else g++, else clang++, else c++."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name.split()[0]):
            return name.split()
    raise CompileError("no C++ compiler found; install g++ (Debian, Ubuntu: apt install g++) or set CXX")


CONSEQUENCE = {
    "deit_kernels._C": "Augmentation runs in NumPy instead: exact, but many times slower. "
    "Losses on the CPU run in plain PyTorch.",
    "deit_kernels._C_cuda": "Augmentation runs on the CPU only.",
    "deit_fast.data._jpeg_part": "The whole of every JPEG file is decoded, also where a crop of it would do. It needs "
    "libjpeg-turbo with its header (Debian: apt install libjpeg62-turbo-dev, Ubuntu: apt install libjpeg-turbo8-dev).",
}


class BuildExtensions(build_ext):
    """Builds each extension with ninja; the extensions are optional, so setuptools goes on when one of them fails."""

    def finalize_options(self) -> None:
        # By default pip builds an editable install in a temporary folder, where ninja would find nothing to keep.
        self.build_temp = os.path.abspath(self.build_temp or ROOT / "build/ninja")
        if BY_NAME:  # out of the way of wheels, which hold whatever lies in build/lib*
            self.build_lib = self.build_lib or f"{self.build_temp}/lib"
        super().finalize_options()

    def get_ext_filename(self, fullname: str) -> str:
        suffix = ".abi3.so"
        if fullname.endswith("_cuda"):
            try:
                suffix = f".cu{numeric(find_toolkit().version)[0]}.abi3.so"
            except CompileError:
                suffix = ".abi3.so"  # is not going to be built
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
        # No path of this machine ends up in a binary, not even in an error message of torch's headers.
        maps = [f"-ffile-prefix-map={ROOT}=."]
        cxx, versions = [*compiler(), *CXX_FLAGS, f"-DDEIT_INTERFACE={interface()}"], []
        compilers = {".cpp": cxx}
        libraries = [f"-l{name}" for name in ext.libraries]
        if ext.name.startswith("deit_kernels."):
            torch = find_torch()
            versions += ["torch", torch.version]
            maps += [f"-ffile-prefix-map={torch.folder}=torch"]
            cxx += [STABLE_ABI, "-isystem", f"{torch.folder}/include"]
            libraries += [f"-L{torch.folder}/lib", "-ltorch_cpu"]
        if ext.name.endswith("_cuda"):
            toolkit = find_matching_toolkit(torch)
            versions += ["CUDA", toolkit.version]
            cxx += ["-DDEIT_CUDA", "-DUSE_CUDA"]  # USE_CUDA opens the CUDA part of torch's C interface
            nvcc = [f"{toolkit.home}/bin/nvcc", "-ccbin", compiler()[0], *NVCC_FLAGS, *toolkit.architectures]
            compilers[".cu"] = nvcc + [f"-Xcompiler={flag}" for flag in ("-fPIC", "-fvisibility=hidden", EXACT, *maps)]
            libraries += ["-ltorch_cuda", f"-L{toolkit.home}/lib64", f"-L{toolkit.home}/lib", "-lcudart"]
        cxx += maps

        target = Path(self.get_ext_fullpath(ext.name))
        built = Path(self.build_temp) / ext.name / target.name
        run_ninja(built, ext.sources, compilers, libraries, versions)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(built), str(target))


def run_ninja(
    binary: Path, sources: list[str], compilers: dict[str, list[str]], libraries: list[str], versions: list[str]
) -> None:
    """Build `binary` in its folder. `compilers` holds a command for each suffix of the sources."""
    try:
        from ninja import BIN_DIR
        from ninja.ninja_syntax import Writer, escape
    except ImportError as error:
        raise CompileError("ninja is not installed; type pip install ninja, then repeat this install") from error
    binary.parent.mkdir(parents=True, exist_ok=True)
    objects = [f"{binary.parent}/{source}.o" for source in sources]
    with (binary.parent / "build.ninja").open("w") as file:
        ninja = Writer(file)
        ninja.variable("builddir", escape(str(binary.parent)))
        for suffix, command in compilers.items():
            # ninja compiles again when a command changes. The versions stand in it because the headers of another torch
            # may be older than our objects.
            command = f"{escape(shlex.join(command))} -MD -MF $out.d -c $in -o $out # {' '.join(versions)}"
            ninja.rule(suffix[1:], command, depfile="$out.d", deps="gcc")
        link, needed = shlex.join([*compiler(), "-shared", "-s"]), shlex.join(["-Wl,--as-needed", *libraries])
        ninja.rule("link", f"{escape(link)} $in -o $out {escape(needed)}")
        for source, name in zip(sources, objects, strict=True):
            ninja.build(name, Path(source).suffix[1:], source)
        ninja.build(str(binary), "link", objects)
    command = [os.path.join(BIN_DIR, "ninja"), "-v", "-f", file.name]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, file=sys.stderr)
    if done.returncode:
        failed = re.search(r"^FAILED: .*\n(\S+)", done.stdout, re.MULTILINE)
        raise CompileError(f"the command printed above failed, {failed.group(1) if failed else 'ninja'}")


class NoSourceDistribution(sdist):
    def run(self) -> None:
        raise SetupError("there is no sdist, it would lack csrc/ or kernels/: type make wheel, or build from a clone")


CPU_SOURCES = sorted(glob("csrc/cpu/*.cpp", root_dir=ROOT))
GIL_DISABLED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def extension(name: str, *sources: str, libraries: tuple[str, ...] = ()) -> Extension:
    sources = ("csrc/interface.cpp", *sources)
    return Extension(name, list(sources), libraries=list(libraries), optional=True)


OPS = [
    extension("deit_kernels._C", "csrc/ops.cpp", "csrc/loss_ops.cpp", *CPU_SOURCES),
    extension("deit_kernels._C_cuda", "csrc/ops.cpp", "csrc/cuda/augment.cu"),
]
TRAINER = [extension("deit_fast.data._jpeg_part", "csrc/jpeg_part.cpp", libraries=("jpeg",))]

setup(
    # An install or a wheel is of one package, and an extension of another would make setuptools claim that one too.
    ext_modules=OPS + TRAINER if BY_NAME else OPS if Path.cwd() == ROOT / "kernels" else TRAINER,
    cmdclass={"build_ext": BuildExtensions, "sdist": NoSourceDistribution},
    # The limited-API tag does not exist for a CPython without a GIL.
    options={} if GIL_DISABLED else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
