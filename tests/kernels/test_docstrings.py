"""The names and files that docstrings of deit_kernels speak of exist: what is renamed is renamed there too."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kernels" / "deit_kernels"
FILES = sorted(PACKAGE.rglob("*.py"))
NAME = re.compile(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`")  # also `a.b.name(arguments)`
FOREIGN = {
    "torch.compile", "torch.compiler.assume_constant_result", "torch.manual_seed", "Compose",  # torch, torchvision
    "RandomErasing", "RandomResizedCropAndInterpolation", "auto_augment_transform",
    "rand_augment_transform",  # timm
    "create_transform", "timm.data.create_transform", "model.set_attn_implementation",  # timm, transformers
}  # fmt: skip


def docstrings(tree: ast.Module) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]


def names(tree: ast.Module) -> set[str]:
    """All names that the code uses or defines, and short strings, which name fields."""
    found = set()
    for node in ast.walk(tree):
        found |= {getattr(node, field, None) for field in ("id", "attr", "arg", "name")}
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 40:
            found |= set(re.findall(r"\w+", node.value))
    return found


KNOWN = {path.stem for path in FILES}.union(*(names(ast.parse(path.read_text())) for path in FILES))
KNOWN |= {path.name for path in [*FILES, *(ROOT / "csrc").rglob("*.h")]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_name_in_a_docstring_exists(path: Path) -> None:
    spoken_of = {name for text in docstrings(ast.parse(path.read_text())) for name in NAME.findall(text)}
    assert {name for name in spoken_of - FOREIGN - KNOWN if name.split(".")[-1] not in KNOWN} == set()


def test_a_name_that_does_not_exist_would_be_seen() -> None:
    (spoken_of,) = NAME.findall(docstrings(ast.parse('"""`loss_call` looks at nothing."""'))[0])
    assert spoken_of == "loss_call" and spoken_of not in KNOWN
