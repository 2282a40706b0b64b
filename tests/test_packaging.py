"""The two wheels: what is in them, what they need, and that they work where nothing else is installed.

Those of the default tests come from `make wheel` with compilers that hand out the binaries of the working tree.
"""

import os
import re
import subprocess
import sys
import venv
import zipfile
from email.message import Message
from email.parser import BytesParser
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
ROOMS = {"deit_kernels": "kernels/deit_kernels", "deit_fast": "deit_fast"}
COMPILER = """#!/bin/sh
for argument; do [ "$previous" = -o ] && output=$argument; previous=$argument; done
case "$output" in
    *.so) cp "$BINARIES/${output##*/}" "$output" ;;
    ?*) : > "$output" ;;
    *) echo "release $CUDA" ;;
esac
"""

each_wheel = pytest.mark.parametrize("package", ROOMS)


def tracked_files() -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def binaries(package: str) -> dict[str, bytes]:
    """Those of the working tree, by their names in a wheel."""
    room = ROOT / ROOMS[package]
    return {f"{package}/{path.relative_to(room)}": path.read_bytes() for path in room.rglob("*.so")}


def copied_sources(folder: Path) -> Path:
    for name in tracked_files():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    return folder / "source"


def handing_out(binaries: dict[str, bytes], cuda: str, folder: Path) -> dict[str, str]:
    """An environment whose compilers take no time: their binaries are these. Its CUDA toolkit is of version `cuda`."""
    files = {"c++": COMPILER, "cuda/bin/nvcc": COMPILER, "cuda/include/cuda_runtime.h": ""}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    for name, content in binaries.items():
        (folder / Path(name).name).write_bytes(content)
    made_up = {"CXX": folder / "c++", "CUDA_HOME": folder / "cuda", "BINARIES": folder, "CUDA": cuda}
    return os.environ | {name: str(value) for name, value in made_up.items()}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`make wheel` after `build_ext --inplace`, whose binaries of both packages must not end up in each wheel."""
    pytest.importorskip("auditwheel")
    if not binaries("deit_kernels"):
        pytest.skip("the extension is not built")
    folder = tmp_path_factory.mktemp("wheels")
    source = copied_sources(folder)
    compilers = handing_out(binaries("deit_kernels") | binaries("deit_fast"), str(torch.version.cuda), folder / "tools")
    make = ["make", "-o", "tools", "wheel", f"PYTHON={sys.executable}"]
    for command in ([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], make):
        done = subprocess.run(command, cwd=source, env=compilers, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    built = sorted((source / "dist").iterdir())
    assert len(built) == 2
    return {path.name.split("-")[0]: path for path in built}


def test_make_wheel_installs_what_builds_and_nothing_else(tmp_path: Path) -> None:
    copied = copied_sources(tmp_path)
    steps = subprocess.run(["make", "-n", "wheel"], cwd=copied, check=True, capture_output=True, text=True).stdout
    installed = [line for line in steps.splitlines() if "pip install" in line]
    assert "auditwheel" in installed[0]
    assert not re.search(r"\btest\b|demo|mlxtend|-e ", " ".join(installed))


def said_by(wheel: Path, file: str) -> Message:
    with zipfile.ZipFile(wheel) as content:
        (name,) = (name for name in content.namelist() if name.endswith(f".dist-info/{file}"))
        return BytesParser().parsebytes(content.read(name))


def test_the_ops_need_torch_and_numpy_and_the_trainer_needs_the_ops(wheels: dict[str, Path]) -> None:
    ops, trainer = (said_by(wheels[package], "METADATA") for package in ROOMS)
    assert (ops["Name"], trainer["Name"]) == ("deit-kernels", "deit-fast")
    assert ops.get_all("Requires-Dist") == ["torch>=2.11", "numpy>=1.26"]
    assert ops.get_all("Provides-Extra") is None
    assert ops["Version"] == trainer["Version"]
    assert f"deit-kernels=={ops['Version']}" in trainer.get_all("Requires-Dist")
    assert set(trainer.get_all("Provides-Extra")) == {"train", "parquet", "export", "demo", "bench", "test"}
    with_commands = [
        package
        for package, wheel in wheels.items()
        if any(name.endswith("entry_points.txt") for name in zipfile.ZipFile(wheel).namelist())
    ]
    assert with_commands == ["deit_fast"]


def test_one_wheel_serves_every_python_and_that_of_the_ops_every_linux(wheels: dict[str, Path]) -> None:
    tags = {package: said_by(wheel, "WHEEL")["Tag"] for package, wheel in wheels.items()}
    assert tags["deit_kernels"].startswith("cp310-abi3-manylinux_2_")
    assert tags["deit_fast"].startswith("cp310-abi3-linux_")
    assert all(wheel.name.endswith(f"-{tags[package]}.whl") for package, wheel in wheels.items())


@each_wheel
def test_a_wheel_holds_every_file_of_its_package_and_no_other(package: str, wheels: dict[str, Path]) -> None:
    expected = {name: (ROOT / name).read_bytes() for name in tracked_files() if name.startswith(f"{ROOMS[package]}/")}
    expected = {name.removeprefix("kernels/"): content for name, content in expected.items()} | binaries(package)
    assert f"{package}/py.typed" in expected
    with zipfile.ZipFile(wheels[package]) as wheel:
        names = [name for name in wheel.namelist() if not name.endswith("/")]
        held = {name: wheel.read(name) for name in names if ".dist-info/" not in name}
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert held.keys() == expected.keys()
    assert [name for name in held if held[name] != expected[name]] == []


@each_wheel
def test_no_path_of_the_build_is_in_a_wheel(package: str, wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels[package]) as wheel:
        content = b"".join(map(wheel.read, wheel.namelist()))
    for path in (ROOT, wheels[package].parents[1], Path(torch.__file__).parents[1], Path(sys.prefix)):
        assert str(path).encode() not in content


def with_their_needs(*requirements: str) -> set[str]:
    """The distributions that these requirements install, their own ones too."""
    found, open_ones = set(), [Requirement(text) for text in requirements]
    while open_ones:
        needed = open_ones.pop()
        if needed.name in found or (needed.marker and not needed.marker.evaluate({"extra": ""})):
            continue
        found.add(needed.name)
        open_ones += [Requirement(text) for text in distribution(needed.name).requires or ()]
    return found


class Clean:
    """A virtual environment that sees these distributions of ours, which are gigabytes, and no others.

    They are links in a folder that a .pth file names: pip writes to site-packages only, so never through a link.
    """

    def __init__(self, folder: Path, *requirements: str) -> None:
        venv.create(folder, with_pip=False)
        self.folder, borrowed = folder, folder / "borrowed"
        borrowed.mkdir()
        for name in with_their_needs(*requirements):
            ours = distribution(name)
            for part in {file.parts[0] for file in ours.files or ()} - {"..", "__pycache__"}:
                if not (borrowed / part).is_symlink():
                    (borrowed / part).symlink_to(ours.locate_file(part))
        (site_packages,) = (folder / "lib").glob("python*/site-packages")
        (site_packages / "borrowed.pth").write_text(f"{borrowed}\n")

    def install(self, *wheels: Path) -> None:
        """Without what they need: the links give that, and pip must change nothing but its own folder."""
        pip = [sys.executable, "-m", "pip", "--python", self.folder / "bin" / "python", "install", "-q", "--no-index"]
        alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([*pip, "--no-deps", *wheels], env=alone, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def run(self, *command: str) -> str:
        """What it prints, with no compiler on PATH and far from the sources."""
        program, *arguments = command
        done = subprocess.run(
            [self.folder / "bin" / program, *arguments],
            cwd=self.folder, env={"PATH": str(self.folder / "bin")}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_the_readmes_ops_run_where_torch_and_numpy_alone_are_installed(wheels: dict[str, Path], tmp_path: Path) -> None:
    clean = Clean(tmp_path / "clean", "torch", "numpy")
    clean.install(wheels["deit_kernels"])
    section = (ROOT / "README.md").read_text().partition("## The ops alone")[2]
    snippet = re.search(r"```python\n(.*?)```", section, flags=re.DOTALL)[1]
    program = f"""{snippet}
loss.isfinite().item() or exit("the loss is not finite")
import importlib.util, sys, deit_kernels
from deit_kernels import _extension
assert deit_kernels.__file__.startswith(sys.prefix), deit_kernels.__file__
assert importlib.util.find_spec("safetensors") is importlib.util.find_spec("deit_fast") is None
print(deit_kernels.__version__, _extension.cpu_missing, "triton" in sys.modules)
print(tuple(attended.shape), tuple(images.shape))
"""
    printed = clean.run("python", "-W", "error::UserWarning", "-c", program)
    version = said_by(wheels["deit_kernels"], "METADATA")["Version"]
    assert printed == f"{version} None False\n(2, 198, 6, 64) (1, 3, 224, 224)\n"


@pytest.mark.slow
def test_the_trainers_wheel_brings_the_ops_and_the_command(wheels: dict[str, Path], tmp_path: Path) -> None:
    needs = [Requirement(text) for text in said_by(wheels["deit_fast"], "METADATA").get_all("Requires-Dist")]
    needs = [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": "train"})]
    clean = Clean(tmp_path / "clean", *{*needs} - {"deit-kernels"})
    clean.install(wheels["deit_kernels"], wheels["deit_fast"])
    printed = clean.run("deit-fast", "--help")
    assert "train" in printed and "evaluate" in printed
    assert clean.run("python", "-c", "import deit_kernels; print(deit_kernels.__file__)").startswith(str(clean.folder))


def test_an_editable_install_finds_both_packages_in_the_clone(tmp_path: Path) -> None:
    source, clean = copied_sources(tmp_path).resolve(), Clean(tmp_path / "clean", "setuptools", "ninja")
    compilers = handing_out({}, "0.0", tmp_path / "tools") | {"PYTHONPATH": ""}
    pip = [sys.executable, "-m", "pip", "--python", clean.folder / "bin" / "python", "install", "-q", "--no-index"]
    command = [*pip, "--no-deps", "--no-build-isolation", "-e", "./kernels", "-e", "."]
    done = subprocess.run(command, cwd=source, env=compilers, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    find = "from importlib.util import find_spec; print(*(find_spec(name).origin for name in {}))"
    found = clean.run("python", "-c", find.format(list(ROOMS))).split()
    assert found == [str(source / room / "__init__.py") for room in ROOMS.values()]


@pytest.mark.parametrize("package", ROOMS.values())
def test_an_sdist_is_refused_since_it_would_lack_sources(package: str, tmp_path: Path) -> None:
    folder = (ROOT / package).parent
    command = [sys.executable, "setup.py", "egg_info", "-e", tmp_path, "sdist", "-d", tmp_path]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode != 0
    assert "type make wheel" in done.stderr
    assert not list(tmp_path.glob("*.tar.gz"))


@pytest.mark.parametrize(("toolkit", "built"), [("12.8", ["_C_cuda.cu12.abi3.so"]), ("13.0", [])])
def test_a_torch_for_cuda_12_gets_a_binary_where_nvcc_12_is(toolkit: str, built: list[str], tmp_path: Path) -> None:
    version = tmp_path / "path" / "torch" / "version.py"
    version.parent.mkdir(parents=True)
    version.with_name("__init__.py").touch()
    version.write_text("__version__, cuda = '2.11.0+cu128', '12.8'")
    compilers = handing_out({"_C_cuda.cu12.abi3.so": b"for CUDA 12"}, toolkit, tmp_path / "tools")
    paths = os.pathsep.join([str(version.parents[1]), *filter(None, sys.path)])
    command = [sys.executable, "setup.py", "build_ext", f"--build-lib={tmp_path}/lib", f"--build-temp={tmp_path}/temp"]
    done = subprocess.run(
        command, cwd=ROOT / "kernels", env=compilers | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "lib").rglob("*.so")] == built
    refused = f"CUDA {toolkit}, torch 2.11.0+cu128 was built for CUDA 12.8; set CUDA_HOME to a toolkit 12"
    assert (refused in done.stderr) == (not built)


def compiled(source: Path, environment: dict[str, str]) -> list[str]:
    """The sources that a build of the ops compiles."""
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", f"--build-lib={source.parent / 'lib'}"],
        cwd=source / "kernels", env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "deit_kernels._C is not built: " not in done.stderr
    return sorted(re.findall(r" -c (csrc/\S+) ", done.stderr))


@pytest.mark.slow
def test_a_change_compiles_only_what_it_touches(tmp_path: Path) -> None:
    source = copied_sources(tmp_path)
    environment = os.environ | {"CUDA_HOME": handing_out({}, "0.0", tmp_path)["CUDA_HOME"], "CUDA": "0.0"}
    assert len(compiled(source, environment)) > 10
    for changed, sources in {"cpu/weights.cpp": ["cpu/weights.cpp"], "cpu/look_up.h": ["cpu/finish.cpp"]}.items():
        (source / "csrc" / changed).touch()
        assert compiled(source, environment) == [f"csrc/{name}" for name in sources]
    assert compiled(source, environment) == []
