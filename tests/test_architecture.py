"""The rules of the house that a reader of one file cannot see."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Who may import whom: csrc ← deit_kernels ← deit_fast ← benchmarks, tests.
FORBIDDEN = {
    "kernels/deit_kernels": {"deit_fast", "benchmarks", "tests", "timm", "transformers"},
    "deit_fast": {"benchmarks", "tests"},
}
# Integrations know their hosts.
HOSTS = {"kernels/deit_kernels/integrations": {"timm", "transformers"}}


def imported_packages(path: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            packages.add(node.module.split(".")[0])
    return packages


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_one_way(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    hosts = {path: HOSTS.get(str(path.parent.relative_to(ROOT)), set()) for path in files}
    broken = {str(path): bad for path in files if (bad := imported_packages(path) & FORBIDDEN[folder] - hosts[path])}
    assert not broken


def test_the_kernels_folder_is_no_package() -> None:
    # transformers takes an importable `kernels` for Hugging Face's package of that name.
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_only_ops_cpp_includes_torch() -> None:
    csrc = ROOT / "csrc"
    sources = [path for path in csrc.rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert sources
    with_torch = {str(path.relative_to(csrc)) for path in sources if "#include <torch/" in path.read_text()}
    assert with_torch == {"ops.cpp"}


@pytest.mark.parametrize("module", ("deit_kernels", "deit_kernels.integrations"))
def test_importing_the_ops_imports_neither_triton_nor_a_framework(module: str) -> None:
    # Against what torch alone imports, which is not ours to judge.
    program = "import sys, {}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    alone, ours = (
        set(
            subprocess.run(
                [sys.executable, "-c", program.format(name)], capture_output=True, text=True, check=True
            ).stdout.split()
        )
        for name in ("torch", module)
    )
    assert "deit_kernels" in ours
    assert not (ours - alone) & {"triton", "timm", "transformers", "PIL", "torchvision", "deit_fast"}
