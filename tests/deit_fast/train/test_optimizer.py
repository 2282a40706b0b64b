"""Groups, schedule and average against the official code's definitions."""

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch._inductor import metrics
from torch._inductor.utils import fresh_cache

from deit_fast import create_model
from deit_fast.config import OptimConfig
from deit_fast.train.optimizer import MovingAverage, create_optimizer, parameter_groups


def test_the_official_parameter_groups() -> None:
    model = create_model("deit_tiny_distilled_patch16_224")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    undecayed, decayed = parameter_groups(model, 0.05)
    assert (undecayed["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    # 48 block matrices, patch embedding, two heads, and dist_token: timm 0.3.2 does not exempt it.
    assert len(decayed_names) == 52
    assert {"dist_token", "head.weight", "head_dist.weight", "patch_embed.proj.weight"} <= decayed_names
    assert {"cls_token", "pos_embed"} <= {names[id(parameter)] for parameter in undecayed["params"]}
    assert len(undecayed["params"]) + len(decayed["params"]) == len(names)


def test_the_distillation_token_is_exempt_when_asked_as_in_todays_timm() -> None:
    model = create_model("deit_tiny_distilled_patch16_224")
    _, decayed = parameter_groups(model, 0.05, decay_dist_token=False)
    assert len(decayed["params"]) == 51
    assert not any(parameter is model.dist_token for parameter in decayed["params"])


def test_the_optimizers_are_timms_by_default() -> None:
    model = torch.nn.Linear(3, 2)
    adamw, sgd = (
        create_optimizer(OptimConfig(optimizer=name, weight_decay=0.1), model, 1e-3) for name in ("adamw", "sgd")
    )
    for ours, name in ((adamw, "adamw"), (sgd, "sgd")):
        theirs = create_optimizer_v2(model, name, lr=1e-3, weight_decay=0.1)
        assert type(ours) is type(theirs)
        for key in {"betas", "eps", "momentum", "nesterov", "dampening"} & theirs.defaults.keys():
            assert ours.defaults[key] == theirs.defaults[key], key
        assert [group["weight_decay"] for group in ours.param_groups] == [0.0, 0.1]


def test_a_foreign_model_without_exemptions_has_groups_too() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    undecayed, decayed = parameter_groups(model, 0.1)
    assert len(decayed["params"]) == 1 and len(undecayed["params"]) == 3


def test_the_moving_average_follows_parameters_and_batch_norm() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    average = MovingAverage(model, 0.9)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(3):
        model(torch.randn(8, 3)).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(parameter.grad)
        average.update(torch.tensor(True))
        for name, value in model.state_dict().items():
            mixed = 0.9 * expected[name] + 0.1 * value if value.is_floating_point() else value
            expected[name] = mixed.clone()
    torch.testing.assert_close(dict(average.module.state_dict()), expected)
    assert average.module[1].num_batches_tracked == 3
    assert not any(parameter.requires_grad for parameter in average.module.parameters())


def test_a_compiled_average_reads_each_tensor_once_and_is_the_same_average() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.BatchNorm1d(40), torch.nn.Linear(40, 20))
    plain, compiled = MovingAverage(model, 0.9), MovingAverage(model, 0.9)
    compiled.compile()
    with fresh_cache():
        metrics.reset()
        compiled.update(torch.tensor(True))
        tensors = [value for value in model.state_dict().values() if value.is_floating_point()]
        assert metrics.generated_kernel_count == len(tensors)  # on a CPU a kernel a tensor; eager has three
    plain.update(torch.tensor(True))
    for number, finite in enumerate([True, False, True]):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(number + 1)
        before = {name: value.clone() for name, value in compiled.module.named_parameters()}
        for average in (plain, compiled):
            average.update(torch.tensor(finite))
        torch.testing.assert_close(compiled.module.state_dict(), plain.module.state_dict(), rtol=1e-6, atol=1e-7)
        kept = all(torch.equal(value, before[name]) for name, value in compiled.module.named_parameters())
        assert kept is not finite


def test_a_decay_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="decay is in"):
        MovingAverage(torch.nn.Linear(1, 1), 1.0)


def test_timm_names_the_same_undecayed_tokens_but_for_the_distillation_token() -> None:
    theirs = timm.create_model("deit_tiny_distilled_patch16_224").no_weight_decay()
    ours = create_model("deit_tiny_distilled_patch16_224").no_weight_decay()
    assert theirs - ours == {"dist_token", "reg_token"} and not ours - theirs  # DeiT has no reg_token


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_first_step_that_is_left_out_leaves_no_trace(name: str) -> None:
    def trained(gradients: list[float]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        dirt = [torch.full((2, 3), torch.nan) for _ in range(100)]  # what fresh memory may hold
        del dirt
        optimizer = create_optimizer(OptimConfig(optimizer=name), model, 0.1)
        for value in gradients:
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, value)
            optimizer.found_inf = torch.tensor(float(value != value))
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    for left_out, never_there in zip(trained([torch.nan, 1.0, 2.0]), trained([1.0, 2.0]), strict=True):
        assert torch.equal(left_out, never_there)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_moments_take_their_memory_before_the_first_step_and_are_those_of_torch(name: str) -> None:
    models = [torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = create_optimizer(OptimConfig(optimizer=name, weight_decay=0.1), models[0], 0.1)
    assert all(parameter in ours.state for parameter in models[0].parameters())
    options = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    theirs = type(ours)(parameter_groups(models[1], 0.1), lr=0.1, fused=True, **options)
    for _ in range(3):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
    for mine, wanted in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(mine, wanted)
        assert ours.state[mine].keys() == theirs.state[wanted].keys()
