"""LAMB against Apex's formulas and timm's, its flag on the device, its checkpoints; layer-wise learning rates."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.optim import param_groups_layer_decay
from torch import nn

from deit_fast import create_model
from deit_fast.config import Config
from deit_fast.run import checkpoint
from deit_fast.train import lamb, train
from deit_fast.train.optimizer import create_optimizer, parameter_groups
from tests.deit_fast.train.apex_lamb import ApexLamb

LAMB = Config(optimizer="lamb", weight_decay=0.05)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)).double()


def learn(model: nn.Module, step: int) -> None:
    """Gradients whose norm is above 1 in some steps and below in others."""
    model.zero_grad()
    images = torch.randn(4, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    (model(images).square().mean() * 10 ** (step % 3 - 1)).backward()


def test_it_is_apexs_fused_lamb() -> None:
    model, theirs = network(), network()
    optimizer = create_optimizer(LAMB.optim, model, 0.01)
    groups = parameter_groups(theirs, LAMB.optim.weight_decay)
    apex = ApexLamb([(group["params"], group["weight_decay"]) for group in groups])
    norms = []
    for step in range(12):
        for one in (model, theirs):
            learn(one, step)
        norms.append(torch.cat([p.grad.flatten() for p in theirs.parameters()]).norm().item())
        optimizer.step()
        apex.step(0.01)
    assert min(norms) < 1 < max(norms)
    for mine, wanted in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-9)  # the bias corrections are float32


def test_it_is_timms_lamb() -> None:
    model, theirs = network().float(), network().float()
    optimizer = create_optimizer(LAMB.optim, model, 0.01)
    wanted = timm.optim.Lamb(parameter_groups(theirs, LAMB.optim.weight_decay), lr=0.01, eps=1e-8)
    for step in range(12):
        for one, its in ((model, optimizer), (theirs, wanted)):
            learn(one.double(), step)
            one.float()
            its.step()
    torch.testing.assert_close(dict(model.named_parameters()), dict(theirs.named_parameters()), rtol=1e-5, atol=1e-6)


def test_a_few_weights_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    models = []
    for at_once in (1 << 26, 36):
        monkeypatch.setattr(lamb, "_AT_ONCE", at_once)
        model = network()
        optimizer = create_optimizer(LAMB.optim, model, 0.01)
        for step in range(3):
            learn(model, step)
            optimizer.step()
        models.append(model)
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))


def test_a_step_that_is_left_out_leaves_no_trace() -> None:
    def trained(values: list[float]) -> list[torch.Tensor]:
        model = network()
        optimizer = create_optimizer(LAMB.optim, model, 0.1)
        for value in values:
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, value)
            optimizer.found_inf = torch.tensor(float(value != value))
            optimizer.step()
        return [*model.parameters(), *(value for state in optimizer.state.values() for value in state.values())]

    for left_out, never_there in zip(trained([torch.nan, 1.0, torch.nan, 2.0]), trained([1.0, 2.0]), strict=True):
        assert torch.equal(left_out, never_there)


def test_a_scaler_of_losses_leaves_out_a_step_too() -> None:
    model, scaler = network().float(), torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = create_optimizer(LAMB.optim, model, 0.1)
    before = [parameter.clone() for parameter in model.parameters()]
    for value, changes in ((torch.inf, False), (1.0, True)):
        scaler.scale(model(torch.ones(2, 5)).sum() * value).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        same = all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
        assert same is not changes
    scaler.scale(model(torch.ones(2, 5)).sum()).backward()
    with pytest.raises(RuntimeError, match=r"call scaler\.unscale_\(optimizer\) before"):
        scaler.step(optimizer)


def test_the_host_never_asks_the_device() -> None:
    """On the meta device every question about a value raises."""
    model = network().to("meta")
    optimizer = create_optimizer(LAMB.optim, model, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer.found_inf = torch.empty((), device="meta")
    optimizer.step()


def test_an_older_timm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lamb, "lamb", None)
    with pytest.raises(ValueError, match=r"--optimizer lamb needs timm 1.0.31, this is .*: pip install -U timm"):
        create_optimizer(LAMB.optim, network(), 0.1)


def test_a_checkpoint_restores_its_moments_and_counters(tmp_path: Path) -> None:
    model = network().float()
    optimizer = create_optimizer(LAMB.optim, model, 0.01)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    again = copy.deepcopy(model)
    other = create_optimizer(LAMB.optim, again, 0.01)
    moments = checkpoint.tensors_of(model, None, optimizer)["optimizer"]
    checkpoint._write_tensors(tmp_path / "optimizer.safetensors", moments)
    checkpoint._load_optimizer(other, load_file(tmp_path / "optimizer.safetensors"))
    for one, its in ((model, optimizer), (again, other)):
        for parameter in one.parameters():
            parameter.grad = torch.full_like(parameter, 0.3)
        its.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert {value["steps"].item() for value in other.state.values()} == {2.0}


def test_a_run_that_is_continued_is_the_whole_run(tiny: Config, tmp_path: Path) -> None:
    config = tiny.replace(optimizer="lamb", layer_decay=0.7, unscale_lr=True, lr=0.004, save_every=4)
    whole = train(config.replace(out=str(tmp_path / "whole")))
    train(config.replace(out=str(tmp_path / "parts")))
    steps = sorted((tmp_path / "parts" / "checkpoints").glob("step_*"))
    assert len(steps) == 2
    (tmp_path / "parts" / "checkpoints" / "newest").write_text(steps[0].name + "\n")
    (tmp_path / "parts" / "summary.json").unlink()
    parts = train(config.replace(out=str(tmp_path / "parts")))
    newest = [load_file(checkpoint.newest(run.run) / "model.safetensors") for run in (whole, parts)]
    assert all(torch.equal(newest[0][name], newest[1][name]) for name in newest[0])


# Learning rates


def test_the_layers_and_their_rates_are_timms() -> None:
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", depth=3)
    ours = create_model("deit_tiny_distilled_patch16_224", depth=3)
    skipped = {"cls_token", "pos_embed"}
    wanted = param_groups_layer_decay(theirs, 0.05, no_weight_decay_list=skipped, layer_decay=0.65)

    def settings(model: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        return {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}

    expected = settings(theirs, wanted)
    assert len({scale for scale, _ in expected.values()}) == 5  # patches, three blocks, heads
    for model in (ours, theirs):
        if model is theirs:  # it exempts the distillation token too
            expected["dist_token"] = (expected["dist_token"][0], 0.0)
        mine = settings(model, parameter_groups(model, 0.05, layer_decay=0.65))
        assert mine.keys() == expected.keys()
        for name, (scale, decay) in expected.items():
            assert mine[name] == (pytest.approx(scale), decay), name


def test_without_a_layer_decay_the_groups_are_the_official_two() -> None:
    groups = parameter_groups(create_model("deit3_small_patch16_224", depth=1), 0.05, layer_decay=1.0)
    assert [group["lr_scale"] for group in groups] == [1.0, 1.0]


def test_layer_scale_is_not_decayed() -> None:
    model = create_model("deit3_small_patch16_224", depth=1)
    undecayed = parameter_groups(model, 0.05)[0]["params"]
    assert all(any(scale is p for p in undecayed) for scale in (model.blocks[0].ls1.gamma, model.blocks[0].ls2.gamma))


def test_a_network_whose_layers_are_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="the layers of a Sequential are not known: leave --layer-decay out"):
        parameter_groups(network(), 0.05, layer_decay=0.5)


@pytest.mark.parametrize("unscaled", [False, True])
def test_the_rate_is_scaled_by_the_batch_or_not(unscaled: bool, tiny: Config) -> None:
    config = tiny.replace(unscale_lr=unscaled, epochs=1, lr=0.5, warmup_epochs=0.0, layer_decay=0.5)
    train(config)
    row = (Path(config.run.out) / "metrics.jsonl").read_text().splitlines()[0]
    rate = float(row.split('"lr": ')[1].split(",")[0])
    assert rate == pytest.approx(0.5 if unscaled else 0.5 * 8 / 512)
