"""The fast teacher gives the labels of the teacher it was made from."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from deit_fast import load
from deit_fast.data import EvalLoader, open_dataset
from deit_fast.model import IMAGENET_NORMALISATION
from deit_fast.recipes.named import recipe
from deit_fast.teacher.engine import TeacherEngine, fold
from deit_fast.train import train
from deit_fast.weights.build import Frozen
from deit_kernels import TopK

CPU = torch.device("cpu")
OTHER = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)  # a normalisation that differs from the teachers' in every channel


def norms(module: nn.Module) -> int:
    return sum(isinstance(child, nn.BatchNorm2d) for child in module.modules())


def shaken(model: nn.Module) -> nn.Module:
    """With statistics and affine parameters that a fold must get right."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.2, generator=generator)
    return model


@pytest.mark.parametrize(
    ("name", "left", "normalisation"),
    [
        ("regnety_002", 0, "before it (its first convolution pads)"),
        ("test_efficientnet", 0, "before it (its first convolution pads)"),
        ("test_resnet", 0, "before it (its first convolution pads)"),
        ("tf_efficientnet_lite0", 0, "before it (its first convolution pads)"),
        ("test_vit", 0, "folded into its first convolution"),
        ("resnetv2_50", 17, "before it (its first convolution pads)"),  # pre-activation: a sum comes before these
    ],
)
def test_a_folded_teacher_has_the_logits_of_the_teacher(name: str, left: int, normalisation: str) -> None:
    torch.manual_seed(0)
    teacher = Frozen(shaken(timm.create_model(name, num_classes=7)), OTHER)
    size = 160 if name == "test_vit" else 64
    folded, what = fold(teacher, size)
    assert norms(folded) == left and normalisation in what
    images = torch.randn(3, 3, size, size)
    expected = teacher(images)
    torch.testing.assert_close(folded(images), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def small(convolution: nn.Conv2d) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(convolution, nn.Flatten(), nn.LazyLinear(4))


@pytest.mark.parametrize(
    ("options", "folded"),
    [({}, True), ({"stride": 2}, True), ({"padding": 1}, False), ({"padding": "same"}, False), ({"bias": False}, True)],
)
def test_the_normalisation_is_folded_where_the_border_allows_it(options: dict, folded: bool) -> None:
    model = small(nn.Conv2d(3, 5, 3, **options))
    model(torch.zeros(1, 3, 8, 8))
    teacher = Frozen(model, OTHER)
    fast, _ = fold(teacher, 8)
    assert (fast.scale is None) == folded
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(fast(images), teacher(images), rtol=1e-5, atol=1e-5)


def test_equal_means_fold_into_a_padded_convolution() -> None:
    model = small(nn.Conv2d(3, 5, 3, padding=1))
    model(torch.zeros(1, 3, 8, 8))
    teacher = Frozen(model, (IMAGENET_NORMALISATION[0], (0.1, 0.2, 0.3)))
    fast, what = fold(teacher, 8)
    assert fast.scale is None and "folded into its first convolution" in what
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(fast(images), teacher(images), rtol=1e-5, atol=1e-5)


def test_the_students_own_normalisation_costs_nothing() -> None:
    model = timm.create_model("test_resnet", num_classes=4)
    model.pretrained_cfg = dict(zip(("mean", "std"), IMAGENET_NORMALISATION, strict=True))
    fast, what = fold(Frozen(model, IMAGENET_NORMALISATION), 32)
    assert fast.scale is None and "the student's normalisation" in what


class ReadTwice(nn.Module):
    """A convolution whose result goes into a batch norm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), shaken(nn.BatchNorm2d(4)), nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images)
        return self.head((self.norm(x) + x).mean((2, 3)))


class CalledTwice(ReadTwice):
    """A batch norm that serves two convolutions' results."""

    def forward(self, images: Tensor) -> Tensor:
        return self.head((self.norm(self.conv(images)) + self.norm(self.conv(2 * images))).mean((2, 3)))


@pytest.mark.parametrize("kind", [ReadTwice, CalledTwice])
def test_what_cannot_be_folded_stays(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    teacher = Frozen(kind(), OTHER)
    fast, _ = fold(teacher, 16)
    assert norms(fast) == 1
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(fast(images), teacher(images), rtol=1e-4, atol=1e-5)


def test_a_fold_that_changed_the_logits_would_be_dropped(monkeypatch) -> None:
    teacher = Frozen(shaken(timm.create_model("test_resnet", num_classes=4)), OTHER)
    monkeypatch.setattr("deit_fast.teacher.engine.fuse_conv_bn_eval", lambda convolution, norm: convolution)
    same, what = fold(teacher, 32)
    assert norms(same) == norms(teacher) and "as it is" in what


def engine(**options) -> TeacherEngine:
    torch.manual_seed(0)
    teacher = Frozen(shaken(timm.create_model("test_efficientnet", num_classes=11)), OTHER)
    return TeacherEngine(teacher, image_size=32, device=CPU, **options)


def test_only_what_is_asked_for_comes_out_and_autograd_takes_it() -> None:
    images = torch.randn(6, 3, 32, 32)
    logits = engine(top_k=0)(images)
    labels = engine()(images)
    assert labels.dtype == torch.int64 and torch.equal(labels, logits.argmax(1)) and not labels.is_inference()
    best = engine(top_k=3, tau=2.0)(images)
    probs, indices = (logits / 2).softmax(1).topk(3)
    assert isinstance(best, TopK) and best.tau == 2.0
    assert torch.equal(best.indices, indices) and torch.equal(best.probs, probs.half().float())
    assert not best.probs.is_inference() and not logits.is_inference()


def test_the_teacher_given_is_not_changed() -> None:
    teacher = Frozen(shaken(timm.create_model("test_resnet", num_classes=4)), OTHER)
    before = copy.deepcopy(teacher.state_dict())
    TeacherEngine(teacher, image_size=32, device=CPU, dtype=torch.bfloat16)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_weights_are_cast_once_and_logits_are_float32() -> None:
    fast = engine(dtype=torch.bfloat16, top_k=0)
    assert {parameter.dtype for parameter in fast.module.model.parameters()} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):  # the student's
        assert fast(torch.randn(2, 3, 32, 32)).dtype == torch.float32


def test_the_memory_layout_is_measured_or_given(monkeypatch) -> None:
    fast = engine(layout="nchw")
    assert ("nchw", "--teacher-layout") in fast.decisions
    timings = iter([2.0, 1.0])
    monkeypatch.setattr(TeacherEngine, "_milliseconds", lambda *_: next(timings))
    images = torch.zeros(8, 3, 32, 32, device="meta")
    assert fast._faster_layout(images) == ("channels_last", "measured on 8 images: nchw 2.00 ms, channels_last 1.00 ms")


def test_the_layout_is_measured_on_as_many_images_as_fit(monkeypatch) -> None:
    def milliseconds(self: TeacherEngine, images: torch.Tensor, form: torch.memory_format) -> float:
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    monkeypatch.setattr(TeacherEngine, "_milliseconds", milliseconds)
    fast, images, most = engine(layout="nchw"), torch.zeros(8, 3, 32, 32, device="meta"), 3
    assert fast._faster_layout(images)[1].startswith("measured on 2 images")
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        fast._faster_layout(images)


@pytest.mark.slow
def test_folding_and_bf16_change_few_labels_of_the_photographs(tmp_path: Path) -> None:
    run = train(recipe("demo-teacher").replace(out=str(tmp_path / "teacher"))).run
    config = recipe("demo")
    teacher = Frozen(load(run).model, IMAGENET_NORMALISATION)
    options = {"image_size": config.data.image_size, "device": CPU}
    engines = {dtype: TeacherEngine(teacher, dtype=dtype, **options) for dtype in (torch.float32, torch.bfloat16)}
    train_set, _ = open_dataset(config.data.data)
    different = dict.fromkeys(engines, 0)
    for batch in EvalLoader(train_set, config.data.preprocessing(IMAGENET_NORMALISATION).policy, batch_size=32):
        labels = teacher(batch.images).argmax(1)
        for dtype, engine in engines.items():
            different[dtype] += (engine(batch.images) != labels).sum().item()
    print(f"labels that differ of {len(train_set)}: {different}")
    assert all(count <= 0.005 * len(train_set) for count in different.values())
