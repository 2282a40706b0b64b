"""The ops as PyTorch sees them: schemas, fakes, compiled graphs. `interpreter/` runs this with the kernels beneath."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode

from deit_kernels import MixedTarget, _extension, binary_cross_entropy, cross_entropy, distillation_loss, kl_divergence
from deit_kernels.distill_loss.checks import distillation_call
from tests.kernels.distill_loss.loss_cases import (
    BINARY,
    TARGETS,
    TEACHERS,
    WEIGHTED_KINDS,
    Case,
    full_options,
    make_call,
    product,
    run,
)

KINDS = product(target=TARGETS, teacher=TEACHERS, heads=(2, 1), smoothing=(0.1,)) + BINARY[::5]
KINDS += WEIGHTED_KINDS[::4]
FORWARD = torch.ops.deit_kernels.distillation_loss_forward.default
BACKWARD = torch.ops.deit_kernels.distillation_loss_backward.default
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def compiled(function, **options):
    """Full graph or error; aot_eager runs everything but code generation."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", KINDS[::7], ids=str)
def test_both_ops_pass_opcheck(case: Case, reduction: str) -> None:
    call = distillation_call(**full_options(make_call(case, rows=3, classes=41) | {"reduction": reduction}))
    call = type(call)(*(value.detach() if isinstance(value, torch.Tensor) else value for value in call))
    torch.library.opcheck(FORWARD, tuple(call), test_utils=CHECKS)
    loss, _, _, statistics, count = FORWARD(*call)
    for needed in ((True, True), (False, True), (True, False)) if call.dist is not None else ((True, False),):
        torch.library.opcheck(BACKWARD, (torch.ones_like(loss), statistics, count, *call, *needed), test_utils=CHECKS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_cross_entropy_has_the_same_bits_with_and_without_a_gradient(dtype: torch.dtype, reduction: str) -> None:
    logits, labels = torch.randn(5, 7, dtype=dtype), torch.tensor([0, 6, -100, 3, 3])
    options = {"label_smoothing": 0.1, "reduction": reduction}
    loss, of_a_leaf = (
        cross_entropy(logits.clone().requires_grad_(needed), labels, **options) for needed in (False, True)
    )
    assert torch.equal(loss, of_a_leaf.detach()) and loss.dtype == dtype and not loss.requires_grad


@pytest.mark.skipif(_extension.cpu_missing is not None, reason=f"{_extension.cpu_missing}")
@pytest.mark.parametrize("mean", [True, False])
def test_the_op_of_a_cross_entropy_passes_opcheck(mean: bool) -> None:
    arguments = torch.randn(5, 7), torch.tensor([0, 6, -100, 3, 3]), 0.1, -100, mean
    torch.library.opcheck(torch.ops.deit_kernels._cross_entropy.default, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("case", KINDS[::3], ids=str)
def test_a_compiled_call_is_one_graph_with_equal_results(case: Case) -> None:
    call = make_call(case, rows=3, classes=41)
    tensors = ("cls_logits", "dist_logits", "teacher", "target")
    options = {name: value for name, value in call.items() if name not in tensors}

    def loss(cls, dist, teacher, target):
        return distillation_loss(cls, dist, teacher, target, **options, return_parts=True)

    inputs = [call[name] for name in tensors]
    expected, got = loss(*inputs), compiled(loss)(*inputs)
    heads = [logits for logits in inputs[:2] if logits is not None]
    gradients = [torch.autograd.grad(result[0], heads) for result in (expected, got)]
    for one, other in zip((*expected, *gradients[0]), (*got, *gradients[1]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", [Case("labels"), Case("mixed", smoothing=0.1, base="bce thresholded")], ids=str)
def test_a_new_batch_size_or_class_count_compiles_nothing_when_shapes_are_dynamic(case: Case) -> None:
    graphs = CompileCounter()
    torch.compiler.reset()
    loss = torch.compile(distillation_loss, fullgraph=True, dynamic=True, backend=graphs)
    for rows, classes in ((5, 41), (6, 41), (7, 100)):
        call = make_call(case, rows, classes)
        torch.testing.assert_close(loss(**call), distillation_loss(**call))
    assert graphs.frame_count == 1


def test_the_small_functions_compile_too() -> None:
    logits, labels = torch.randn(3, 41, requires_grad=True), torch.tensor([1, 2, 3])
    mixed = MixedTarget(labels, labels.flip(0), torch.full((3,), 0.3))
    assert torch.equal(compiled(cross_entropy)(logits, mixed), cross_entropy(logits, mixed))
    assert torch.equal(compiled(binary_cross_entropy)(logits, mixed), binary_cross_entropy(logits, mixed))
    teacher = torch.randn(3, 41)
    assert torch.equal(compiled(kl_divergence)(logits, teacher, tau=2.0), kl_divergence(logits, teacher, tau=2.0))


def test_inside_a_compiled_training_step_under_autocast() -> None:
    call = make_call(Case("mixed", "soft logits"), rows=4, classes=41)
    model = torch.nn.Linear(8, 41)

    def step(images):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
            return distillation_loss(**call | {"cls_logits": logits, "dist_logits": logits})

    images = torch.randn(4, 8)
    loss = compiled(step)(images)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, step(images))


def test_one_tensor_may_be_given_in_two_places() -> None:
    logits, labels = torch.randn(4, 10, requires_grad=True), torch.arange(4)

    def both(logits, labels):
        return distillation_loss(logits, logits, labels, MixedTarget(labels, labels, torch.full((4,), 0.5)))

    loss = compiled(both)(logits, labels)
    torch.testing.assert_close(loss, cross_entropy(logits, labels))
    gradients = (torch.autograd.grad(one, logits)[0] for one in (loss, cross_entropy(logits, labels)))
    torch.testing.assert_close(*gradients)


def test_fake_cuda_tensors_give_the_shapes_without_a_card() -> None:
    with FakeTensorMode():
        cls, dist, teacher = (torch.empty(4, 10, device="cuda", dtype=torch.float16) for _ in range(3))
        labels = torch.empty(4, device="cuda", dtype=torch.int64)
        loss = distillation_loss(cls, dist, teacher, labels, reduction="none")
        call = distillation_call(**full_options(make_call(Case(), 4, 10)))._replace(cls=cls, dist=dist, target=labels)
        _, _, _, statistics, count = FORWARD(*call)
        gradient, nothing = BACKWARD(loss, statistics, count, *call, True, False)
    assert (loss.shape, loss.dtype, loss.device.type) == ((4,), torch.float32, "cuda")
    assert (gradient.shape, gradient.dtype, gradient.device.type) == ((4, 10), torch.float16, "cuda")
    assert nothing.shape == (0,)


@pytest.mark.slow
def test_inductor_compiles_it_whole() -> None:
    call = make_call(Case("mixed", "hard logits", smoothing=0.1), rows=3, classes=41)
    torch.compiler.reset()
    loss = torch.compile(lambda **inputs: 2 * distillation_loss(**inputs), fullgraph=True)(**call)
    loss.backward()
    expected = run(call, incoming=2.0)
    torch.testing.assert_close(loss, 2 * expected["loss"])
    torch.testing.assert_close(call["cls_logits"].grad, expected["grad of cls"])


def test_a_loss_on_the_cpu_never_imports_triton() -> None:
    program = (
        "import sys, torch, deit_kernels\n"
        "logits, labels = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1])\n"
        "deit_kernels.distillation_loss(logits, None, logits.detach(), labels).backward()\n"
        "assert 'triton' not in sys.modules and 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
