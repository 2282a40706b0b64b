"""The precision of a training: what is asked for, what "auto" means, and that a run keeps its own."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deit_fast.config import Config
from deit_fast.files import read_json, write_json
from deit_fast.ranks.group import Ranks
from deit_fast.run import checkpoint
from deit_fast.run.report import Reporter
from deit_fast.train import train
from deit_fast.train.prepare import Start, _restore
from tests.deit_fast.train.runs import rows, weights


def test_a_depthwise_convnet_trains_in_bfloat16_without_skipping_a_step(tiny: Config) -> None:
    """In channels_last, oneDNN's gradient of its last depthwise convolution is NaN at 16 pixels on an AMX processor."""
    foreign = {"distill": "none", "teacher": "", "patch_size": 0, "width": 0, "depth": 0, "heads": 0}
    result = train(tiny.replace(model="test_efficientnet", precision="bf16", log_every=1, **foreign))
    steps = [row for row in rows(result.run) if "skipped" in row]
    assert len(steps) == 6 and not any(row["skipped"] for row in steps)


def test_bf16_autocast_on_the_cpu_when_asked(tiny: Config) -> None:
    train(tiny.replace(precision="bf16"))
    assert all(value.dtype == torch.float32 for name, value in weights(tiny.run.out).items())


@pytest.mark.parametrize(("amx", "begun"), [(True, "bf16"), (False, "fp32")])
def test_a_run_keeps_the_precision_that_it_began_with(tiny: Config, amx: bool, begun: str, monkeypatch, capsys) -> None:
    auto = tiny.replace(precision="auto", save_every=2, keep=5)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    train(auto)
    whole = weights(auto.run.out)
    (Path(auto.run.out) / "summary.json").unlink()
    (Path(auto.run.out) / "checkpoints" / "newest").write_text("step_00000002\n")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": not amx})
    capsys.readouterr()
    train(auto)
    assert f"precision {begun}" in " ".join(capsys.readouterr().out.split())
    assert all(torch.equal(value, whole[name]) for name, value in weights(auto.run.out).items())


def test_a_run_of_an_older_version_stays_in_float32_on_a_cpu(tiny: Config, monkeypatch, capsys) -> None:
    auto = tiny.replace(precision="auto", save_every=2, keep=5)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False})
    train(auto)
    run = Path(auto.run.out)
    (run / "summary.json").unlink()
    (run / "checkpoints" / "newest").write_text("step_00000002\n")
    state = run / "checkpoints" / "step_00000002" / "state.json"
    content = read_json(state)
    for name in ("precision", "sha256"):
        content.pop(name)
    write_json(state, {**content, "sha256": checkpoint._digest(content)})
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    capsys.readouterr()
    train(auto)
    out = " ".join(capsys.readouterr().out.split())
    assert "continue from step 2" in out and "precision fp32 (this run began with it)" in out


def test_a_continued_run_scales_its_loss_as_before(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    folder = checkpoint.save(tmp_path, 3, checkpoint.tensors_of(model, None, optimizer), {}, keep=1)
    before = torch.amp.GradScaler("cpu", init_scale=4.0).state_dict()
    step = SimpleNamespace(model=model, ema=None, optimizer=optimizer, scaler=torch.amp.GradScaler("cpu"))
    alone = Ranks(0, 1, torch.device("cpu"))
    _restore(Start(step=3, folder=folder, scaler=before), "grouped", alone, step, Reporter(False))
    assert step.scaler.get_scale() == 4.0
