"""The examples: unchanged results in other people's code, what was replaced is said, and a broken op is noticed."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from deit_kernels.integrations import criterion, models

ROOT = Path(__file__).parents[1]
NAMES = ["timm_training_loop", "huggingface_deit", "nano_vit"]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module: ModuleType, *arguments: str) -> int:
    return module.main(list(arguments)) if module.__name__ == "timm_training_loop" else module.main()


def test_every_example_is_listed() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_results_are_unchanged_and_what_was_replaced_is_said(name: str, capsys: pytest.CaptureFixture) -> None:
    assert run(example(name)) == 0
    out = capsys.readouterr().out
    assert out.count("replaced: ") >= 2 and "deit_kernels" in out
    assert "attention runs in PyTorch (the tensors are on the CPU)" in out, "what computes is said as it is"
    assert "the same training, within" in out


def test_an_undistilled_student_of_timm(capsys: pytest.CaptureFixture) -> None:
    assert run(example("timm_training_loop"), "--model", "vit_tiny_patch16_224") == 0
    assert "timm's LabelSmoothingCrossEntropy, by ours" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nano_vit", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[:2])])
def test_the_kernels_themselves_under_tritons_interpreter(name: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    program = f"import sys, {name}; {name}.STEPS, {name}.BATCH = 2, 4; sys.exit({name}.main())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "examples", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "attention runs in our kernels" in done.stdout and "the same training" in done.stdout


def sharper(attention: Callable) -> Callable:
    """Attention whose softmax is 5 % too sharp."""
    return lambda *tensors, scale=None, **options: attention(
        *tensors, scale=1.05 * (scale or tensors[0].shape[-1] ** -0.5), **options
    )


def scaled(loss: Callable) -> Callable:
    """A loss that is 0.1 % too large."""

    def broken(*arguments, **options):
        result = loss(*arguments, **options)
        return (1.001 * result[0], *result[1:]) if isinstance(result, tuple) else 1.001 * result

    return broken


def mirrored(transform: Callable) -> Callable:
    """A transform that flips what it should not."""
    return lambda policy: lambda image: transform(policy)(image).flip(-1)


FAULTS = [
    ("timm_training_loop", models, "attention_qkvpacked", sharper),
    ("timm_training_loop", criterion, "distillation_loss", scaled),
    ("timm_training_loop", None, "Transform", mirrored),
    ("huggingface_deit", models, "attention", sharper),
    ("huggingface_deit", None, "cross_entropy", scaled),
    ("huggingface_deit", None, "BatchTransform", mirrored),
    ("nano_vit", None, "attention_qkvpacked", sharper),
    ("nano_vit", None, "distillation_loss", scaled),
]


@pytest.mark.parametrize(("name", "owner", "op", "fault"), FAULTS, ids=[f"{name}-{op}" for name, _, op, _ in FAULTS])
def test_an_example_fails_when_its_op_is_broken(
    name: str, owner: ModuleType | None, op: str, fault: Callable, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    module = example(name)
    owner = owner or module
    monkeypatch.setattr(owner, op, fault(getattr(owner, op)))
    assert run(module) == 1
    assert "error: the losses differ by" in capsys.readouterr().err


def test_a_model_whose_attention_cannot_be_replaced_is_named_block_by_block(capsys: pytest.CaptureFixture) -> None:
    assert run(example("timm_training_loop"), "--model", "swin_tiny_patch4_window7_224") == 2
    err = capsys.readouterr().err
    assert err.startswith(
        "error: swin_tiny_patch4_window7_224: the attention of 12 modules cannot be replaced, so none"
    )
    assert "layers.0.blocks.0.attn" in err and "WindowAttention is not timm.layers.Attention" in err
