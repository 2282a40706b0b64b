"""The losses under torch.func: grad and vmap agree with a loop, second derivatives too, forward mode is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, jvp, vmap

from deit_kernels import MixedTarget, TopK, binary_cross_entropy, cross_entropy, distillation_loss, kl_divergence
from tests.kernels.distill_loss.loss_cases import TAU

SAMPLES, ROWS, CLASSES = 3, 4, 7


def batch(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What the forms below take, for each sample; one sample has an ignored row, and one has no row that counts."""
    generator = torch.Generator().manual_seed(0)
    cls, dist, teacher = torch.randn(3, SAMPLES, ROWS, CLASSES, generator=generator).to(dtype)
    labels, partner = torch.randint(CLASSES, (2, SAMPLES, ROWS), generator=generator)
    labels[1, 2] = -100
    labels[2] = -100
    probs, indices = (teacher.float() / TAU).softmax(2).topk(3)
    lam = torch.rand(SAMPLES, ROWS, generator=generator)
    return {"cls": cls, "dist": dist, "teacher": teacher, "labels": labels, "partner": partner, "lam": lam,
            "dense": teacher.flip(2).softmax(2), "probs": probs, "indices": indices}  # fmt: skip


WEIGHT = torch.linspace(0.0, 2.0, CLASSES)


def mixed(b: dict[str, Tensor]) -> MixedTarget:
    return MixedTarget(b["labels"], b["partner"], b["lam"])


SOFT = {"mode": "soft", "alpha": 0.3, "tau": TAU, "kl_normalizer": "batch"}
# Each takes the head that is differentiated, the rest of the batch, and the reduction.
FORMS = {
    "cross-entropy": lambda x, b, r: cross_entropy(x, b["labels"], label_smoothing=0.1, reduction=r),
    "mixed": lambda x, b, r: cross_entropy(x, mixed(b), reduction=r),
    "dense": lambda x, b, r: cross_entropy(x, b["dense"], reduction=r),
    "bce": lambda x, b, r: binary_cross_entropy(x, mixed(b), target_threshold=0.0, reduction=r),
    "hard": lambda x, b, r: distillation_loss(x, b["dist"], b["teacher"], mixed(b), reduction=r),
    "the other head": lambda x, b, r: distillation_loss(b["cls"], x, b["teacher"], b["labels"], reduction=r),
    "one head": lambda x, b, r: distillation_loss(x, None, b["partner"], b["dense"], alpha=0.3, reduction=r),
    "soft": lambda x, b, r: distillation_loss(b["cls"], x, b["teacher"], b["labels"], **SOFT, reduction=r),
    "topk": lambda x, b, r: distillation_loss(
        x, b["dist"], TopK(b["indices"], b["probs"], TAU), mixed(b), **SOFT, base="bce", reduction=r
    ),
    "weighted": lambda x, b, r: distillation_loss(
        x, None, b["teacher"], mixed(b), label_smoothing=0.1, weight=WEIGHT, reduction=r
    ),
    "weighted bce": lambda x, b, r: distillation_loss(
        x, b["dist"], b["partner"], b["labels"], base="bce", weight=WEIGHT, reduction=r
    ),
    "weighted dense": lambda x, b, r: distillation_loss(
        b["cls"], x, b["teacher"], b["dense"], **SOFT, weight=WEIGHT, reduction=r
    ),
    "kl": lambda x, b, r: kl_divergence(x, b["teacher"], tau=2.0).expand(1 if r == "none" else ()),
}
FORMS_BY_REDUCTION = [(form, "none" if at % 2 else "mean") for at, form in enumerate(FORMS)]
FORMS_BY_REDUCTION += [("topk", "mean"), ("hard", "none"), ("cross-entropy", "none"), ("weighted", "none")]


def loop(function, b: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.stack([function(x[i], {name: tensor[i] for name, tensor in b.items()}) for i in range(SAMPLES)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("form", "reduction"), FORMS_BY_REDUCTION)
def test_vmap_of_a_loss_and_of_its_gradient_is_a_loop(form: str, reduction: str, dtype: torch.dtype) -> None:
    b, tight = batch(dtype), {"rtol": 1e-6 if dtype != torch.float16 else 1e-3, "atol": 1e-7, "equal_nan": True}

    def loss(x: Tensor, b: dict[str, Tensor]) -> Tensor:
        return FORMS[form](x, b, reduction)

    def total(x: Tensor, b: dict[str, Tensor]) -> Tensor:
        return (loss(x, b) * 2.5).sum()

    assert_close(vmap(loss)(b["cls"], b), loop(loss, b, b["cls"]), **tight)
    assert_close(vmap(grad(total))(b["cls"], b), loop(plain_gradient(total), b, b["cls"]), **tight)
    if form != "kl" and reduction == "mean":
        assert vmap(loss)(b["cls"], b)[2].isnan().item() == (form not in ("dense", "one head", "weighted dense"))


def assert_close(got: Tensor, expected: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(got, expected, **tolerance)


def plain_gradient(function):
    """The double backward by autograd, without torch.func."""

    def gradient(x: Tensor, *rest: object) -> Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(function(leaf, *rest), leaf)[0]

    return gradient


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_of_func_has_the_bits_of_autograds(form: str) -> None:
    b = {name: tensor[1] for name, tensor in batch().items()}

    def loss(x: Tensor) -> Tensor:
        return FORMS[form](x, b, "mean")

    assert torch.equal(grad(loss)(b["cls"]), plain_gradient(loss)(b["cls"]))


def test_what_is_not_mapped_is_the_same_for_every_sample() -> None:
    b = batch()
    one = {name: tensor[0] for name, tensor in b.items()}
    loss = FORMS["hard"]
    got = vmap(grad(lambda x: loss(x, one, "mean")))(b["cls"])
    expected = torch.stack([grad(lambda x: loss(x, one, "mean"))(x) for x in b["cls"]])
    torch.testing.assert_close(got, expected)
    along = vmap(lambda x, t: cross_entropy(x, t), in_dims=(2, 0))(b["cls"].movedim(0, 2).contiguous(), b["labels"])
    torch.testing.assert_close(along, vmap(cross_entropy)(b["cls"], b["labels"]), equal_nan=True)
    same_logits = vmap(cross_entropy, in_dims=(None, 0))(b["cls"][0], b["labels"][:2])
    torch.testing.assert_close(same_logits, torch.stack([cross_entropy(b["cls"][0], t) for t in b["labels"][:2]]))


def test_vmap_over_weights_is_refused_in_a_sentence_that_says_what_to_do() -> None:
    b = batch()
    with pytest.raises(NotImplementedError, match="one weight for all samples: pass it with in_dims=None"):
        vmap(lambda x, t, w: cross_entropy(x, t, weight=w))(b["cls"], b["labels"], WEIGHT.expand(SAMPLES, -1))


def test_vmap_in_vmap_and_a_gradient_through_vmap() -> None:
    cls = torch.randn(2, SAMPLES, ROWS, CLASSES)
    labels = torch.randint(CLASSES, (2, SAMPLES, ROWS))
    nested = vmap(vmap(cross_entropy))(cls, labels)
    flat = torch.stack([cross_entropy(x, t) for x, t in zip(cls.flatten(0, 1), labels.flatten(0, 1), strict=True)])
    torch.testing.assert_close(nested.flatten(), flat)
    through = grad(lambda x: vmap(cross_entropy)(x, labels[0]).sum())(cls[0])
    leaf = cls[0].clone().requires_grad_()
    vmap(cross_entropy)(leaf, labels[0]).sum().backward()
    expected = vmap(grad(cross_entropy))(cls[0], labels[0])
    torch.testing.assert_close(through, expected)
    torch.testing.assert_close(leaf.grad, expected)


@pytest.mark.parametrize("form", ["cross-entropy", "bce", "hard", "one head", "soft", "topk", "weighted"])
def test_second_derivatives_under_func_are_those_of_autograd_and_of_a_loop(form: str) -> None:
    b = {name: tensor[:2] for name, tensor in batch(torch.float64).items()}
    one = {name: tensor[0] for name, tensor in b.items()}

    def loss(x: Tensor, b: dict[str, Tensor] = one) -> Tensor:
        return FORMS[form](x, b, "mean")

    exact = torch.autograd.functional.hessian(loss, one["cls"])
    torch.testing.assert_close(jacrev(jacrev(loss))(one["cls"]), exact)
    eps, direction = 1e-6, torch.randn(ROWS, CLASSES, dtype=torch.float64)
    ahead, behind = (plain_gradient(loss)(one["cls"] + step * direction) for step in (eps, -eps))
    numeric = (ahead - behind) / (2 * eps)
    torch.testing.assert_close(torch.tensordot(exact, direction, 2), numeric, rtol=1e-5, atol=1e-8)

    def penalty(x: Tensor, b: dict[str, Tensor]) -> Tensor:
        return grad(loss)(x, b).square().sum()

    per_sample = torch.stack([grad(penalty)(b["cls"][i], {n: t[i] for n, t in b.items()}) for i in range(2)])
    torch.testing.assert_close(vmap(grad(penalty))(b["cls"], b), per_sample)


def test_per_sample_gradients_of_a_model_agree_with_a_loop() -> None:
    model = torch.nn.Linear(5, CLASSES)
    images, labels = torch.randn(6, 5), torch.randint(CLASSES, (6,))
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(model, parameters, image[None]), label[None])

    got = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)
    for i in range(len(images)):
        cross_entropy(model(images[i : i + 1]), labels[i : i + 1]).backward()
        for name, tensor in model.named_parameters():
            torch.testing.assert_close(got[name][i], tensor.grad)
        model.zero_grad()


@pytest.mark.parametrize("form", ["cross-entropy", "bce", "hard", "kl"])
def test_forward_mode_is_refused_in_a_sentence_that_says_what_to_do(form: str) -> None:
    b = {name: tensor[0] for name, tensor in batch().items()}

    def loss(x: Tensor) -> Tensor:
        return FORMS[form](x, b, "mean")

    def refused():
        return pytest.raises(NotImplementedError, match="no forward-mode derivative")

    def by_rows(x: Tensor) -> Tensor:
        return vmap(lambda row, label: cross_entropy(row[None], label[None]))(x, b["labels"])

    for transformed in (lambda x: jvp(loss, (x,), (x,)), hessian(loss), lambda x: jvp(by_rows, (x,), (x,))):
        with refused():
            transformed(b["cls"])
    with torch.autograd.forward_ad.dual_level(), refused():
        loss(torch.autograd.forward_ad.make_dual(b["cls"], torch.ones_like(b["cls"])))
