"""int8: what is quantised, that its cost is measured and said, and that a loss has to be accepted."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from deit_fast import create_model, load
from deit_fast.tools.export import formats, int8
from deit_fast.tools.export.__main__ import main
from deit_fast.tools.export.int8 import Cost, TooCostly, calibration_of, judged, layers_of, quantised, worst
from deit_fast.tools.export.onnx_file import answer_of, facts_of, open_session, tensor_model

FREE = Cost((80.0, 79.9), 15, (2.0, 1.0), 24, "images", 0)


@pytest.fixture(scope="module")
def quantised_model(finished_run: Path):
    trained = load(finished_run)
    model, calibration = tensor_model(trained), calibration_of(trained, "", 16)
    return trained, model, calibration, quantised(model, calibration.images)


def test_products_with_weights_are_int8_and_nothing_else(quantised_model) -> None:
    _, model, _, small = quantised_model
    layers = list(layers_of(model).values())
    blocks = [
        f"blocks.{block}.{layer}" for block in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    assert sorted(layers) == sorted(["patch_embed", *blocks, "head", "head_dist"])
    made = {output: node for node in small.graph.node for output in node.output}
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in small.graph.initializer}
    counted = 0
    for node in small.graph.node:
        sources = [made[name].op_type for name in node.input if name in made]
        if node.op_type in ("MatMul", "Gemm", "Conv") and "DequantizeLinear" in sources:
            weight = made[node.input[1]]
            assert sources[:2] == ["DequantizeLinear"] * 2 and weights[weight.input[0]].dtype == np.int8
            assert weights[weight.input[1]].ndim == 1, "a scale an output channel"
            counted += 1
        elif node.op_type != "Shape":
            assert "DequantizeLinear" not in sources, f"{node.op_type} computes on what was quantised"
    assert counted == len(layers)


def test_its_logits_are_near_and_its_weights_a_quarter(quantised_model, tmp_path: Path) -> None:
    trained, model, calibration, small = quantised_model
    sizes = []
    for number, each in enumerate((model, small)):
        onnx.save_model(each, tmp_path / f"{number}.onnx")
        sizes.append(sum(onnx.numpy_helper.to_array(weight).nbytes for weight in each.graph.initializer))
    images = np.concatenate(calibration.images)
    with torch.inference_mode():
        exact = trained.model(torch.from_numpy(images)).numpy()
    got = answer_of(open_session(tmp_path / "1.onnx"))({"images": images})["logits"]
    assert 0 < np.abs(got - exact).max() < 0.1 * np.abs(exact).max()
    assert sizes[1] < 0.5 * sizes[0]  # of a model of 32 channels, in which much is not a product


def test_calibration_images_are_training_images_by_the_seed(finished_run: Path) -> None:
    trained = load(finished_run)
    first, again, other = (calibration_of(trained, "", 5, seed) for seed in (0, 0, 1))
    assert np.array_equal(np.concatenate(first.images), np.concatenate(again.images))
    assert not np.array_equal(np.concatenate(first.images), np.concatenate(other.images))
    assert len(calibration_of(trained, "", 100).images) == 24 and len(first.validation) == 15


def test_the_worst_layer_is_the_one_that_was_made_hard(finished_run: Path) -> None:
    trained = load(finished_run)
    with torch.no_grad():  # one channel of an activation dwarfs the others, so that they round to nothing
        trained.model.blocks[1].norm2.weight[3] *= 1000
        trained.model.blocks[1].mlp.fc1.weight[:, 3] /= 1000
    ranked = worst(tensor_model(trained), calibration_of(trained, "", 16))
    assert ranked[0][0] == "blocks.1.mlp.fc1" and ranked[0][1] > 3 * ranked[1][1]


@pytest.mark.parametrize(
    ("cost", "says"),
    [
        (FREE._replace(top1=(80.0, 79.7)), r"int8 loses 0\.30 points of top-1 .* each alone in int8: fc1 \(50 %\)"),
        (FREE._replace(milliseconds=(1.0, 1.5)), "int8 is slower than float32 on this machine"),
    ],
)
def test_what_costs_too_much_has_to_be_accepted(cost: Cost, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "worst", lambda *arguments: [("fc1", 0.5)])
    with pytest.raises(TooCostly, match=f"{says}.*: nothing was written; type --accept"):
        judged(cost, None, None, accept=False)
    (said,) = judged(cost, None, None, accept=True).said
    assert says[:10].replace("\\", "") in said
    assert judged(FREE, None, None, accept=False).said == ()


@pytest.mark.parametrize("takes", ["image", "tensor"])
def test_the_command_measures_and_the_card_says_it(finished_run: Path, tmp_path: Path, capsys, takes: str) -> None:
    out = tmp_path / "out"
    command = [str(finished_run), "--to", "onnx", "--int8", "--accept", "--calibration-images", "20", "--input", takes]
    assert main([*command, "--out", str(out)]) == 0
    printed, card = capsys.readouterr().out, " ".join((out / "README.md").read_text().split())
    assert "on 15 validation images" in printed and "calibrated on 20 training images" in printed
    assert "calibrated on 20 training images of `images" in card and "Softmax, GELU, LayerNorm" in card
    facts = facts_of(open_session(out / "model.onnx"), out / "model.onnx")["int8"]
    cost = Cost(**{**facts, "top1": tuple(facts["top1"]), "milliseconds": tuple(facts["milliseconds"])})
    assert str(cost) in card and str(cost) in printed and cost.images == 15
    own = load(finished_run)
    which = "ema" if "moving average" in own.source else "student"
    assert cost.top1[0] == pytest.approx(
        json.loads((finished_run / "summary.json").read_text())[which]["fused"]["top1"]
    )


def test_nothing_is_written_where_it_is_not_accepted(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(formats, "measured", lambda *arguments: FREE._replace(milliseconds=(1.0, 2.0)))
    assert main([str(finished_run), "--to", "onnx", "--int8", "--out", str(tmp_path / "out")]) == 1
    assert "slower than float32" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_weights_without_data_are_a_sentence(tmp_path: Path, images: Path, capsys) -> None:
    sizes = {"image_size": 16, "patch_size": 8, "depth": 1, "classes": 5}
    torch.save(create_model("deit_tiny_patch16_224", **sizes).state_dict(), tmp_path / "a.pth")
    command = [str(tmp_path / "a.pth"), "--to", "onnx", "--int8", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "these weights do not say which: type --data FOLDER" in capsys.readouterr().err
    assert main([*command, "--data", str(images)]) == 2
    assert "has 3 classes, the model 5: type --data" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]
