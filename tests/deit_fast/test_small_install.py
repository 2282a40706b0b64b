"""Models and their weights need torch, numpy and safetensors; whatever needs more ends in the line that installs it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deit_fast import create_model

EXTRAS = ("timm", "PIL", "simplejpeg", "tyro", "rich", "matplotlib", "pandas", "pyarrow", "transformers", "torchvision")
LINE = "deit_fast needs timm, PIL, tyro, rich, matplotlib: run pip install 'deit-fast[train]'"
WITHOUT = f"""
import sys

class Uninstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.modules.update(dict.fromkeys({EXTRAS}))  # which importlib.util.find_spec does not find
sys.meta_path.insert(0, Uninstalled())
"""


def python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT + program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_model_is_created_and_loaded_without_the_extras(tmp_path: Path) -> None:
    sizes = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 1, "heads": 2, "classes": 5}
    torch.manual_seed(0)
    expected = create_model("deit_tiny_distilled_patch16_224", **sizes)
    save_file(expected.state_dict(), tmp_path / "weights.safetensors")
    done = python(
        f"""
import torch
from deit_fast import Config, create_model, load_pretrained, read_weights, resize_pos_embed
model = create_model("deit_tiny_distilled_patch16_224", **{sizes})
assert load_pretrained(model, sys.argv[1]) == []
assert all(torch.equal(value, model.state_dict()[name]) for name, value in read_weights(sys.argv[1]).items())
assert resize_pos_embed(model.pos_embed, 8, prefix_tokens=2).shape == (1, 66, 64)
assert not any(sys.modules.get(name) for name in {EXTRAS})
""",
        tmp_path / "weights.safetensors",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "program",
    ["import deit_fast; deit_fast.load", "from deit_fast import load", "from deit_fast.train import train",
     "from deit_fast.weights.trained import load", "import deit_fast.tools.predict"],
)  # fmt: skip
def test_what_needs_the_extras_names_the_line_that_installs_them(program: str) -> None:
    done = python(program)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: {LINE}"


@pytest.mark.parametrize("command", [["-m", "deit_fast", "predict"], ["-mdeit_fast.train"]])
def test_a_command_without_the_extras_is_a_sentence(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    paths = ":".join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run([sys.executable, *command], env={"PYTHONPATH": paths}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: {LINE}\n")


def test_a_users_package_that_is_run_as_a_module_may_use_the_models(tmp_path: Path) -> None:
    """`python -m mine` is no command of ours, although Python says the same of both while it imports them."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("from deit_fast import create_model")
    (tmp_path / "mine" / "__main__.py").write_text("print('runs')")
    paths = ":".join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run([sys.executable, "-m", "mine"], env={"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.stdout == "runs\n", done.stderr
