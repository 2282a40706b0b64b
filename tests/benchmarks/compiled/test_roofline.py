"""The roofline's parts against the model itself, its options, its tables, and the page that holds them."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.compiled import roofline
from benchmarks.compiled.predicted import PAIRS, attention_us, augmentation_us, predictions, row_us
from benchmarks.compiled.roofline import (
    BEGIN,
    CHANGES,
    MODELS,
    PAGE,
    RANGE,
    Machine,
    Part,
    Settings,
    changes_table,
    details,
    main,
    moved,
    on_meta,
    parameters,
    products,
    section,
    step_parts,
    total,
    written,
)
from deit_fast.model import CONFIGS, create_model

TINY, SMALL, BASE = MODELS[:3]
# As the model of the machine would write them.
PREDICTED = {
    "attention_forward_resident n198 d64": {"predicted_us": 80.0},
    "attention_backward_resident n198 d64": {"predicted_us": 220.0},
    "attention_forward_tiled n578 d64": {"predicted_us": 400.0},
    "attention_backward_tiled n578 d64": {"predicted_us": 900.0},
    "attention_delta d64": {"predicted_us": 99.0},
    "attention_forward_resident n16 d64": {"predicted_us": None},
    "loss_forward hard mixed c1000": {"predicted_us": 4.0},
    "loss_backward hard mixed c1000": {"predicted_us": 5.0},
    "loss_mean": {"predicted_us": 2.0},
}
H100, UNPREDICTED = Machine(kernels=PREDICTED), Machine(kernels={})


def of(parts: list[Part], name: str) -> Part:
    (part,) = (part for part in parts if part.name.startswith(name))
    return part


def milliseconds(settings: Settings, machine: Machine = H100) -> float:
    return 1e3 * total(step_parts(settings, machine)).seconds


@pytest.mark.parametrize("name", MODELS)
def test_operations_are_those_that_torch_counts_in_a_forward_and_backward_pass(name: str) -> None:
    config = CONFIGS[name]
    with torch.device("meta"):
        model = create_model(name).train()
        with FlopCounterMode(display=False) as counter:
            cls_logits, dist_logits = model(torch.empty(2, 3, config.image_size, config.image_size))
            (cls_logits.sum() + dist_logits.sum()).backward()
    counted = {str(op): flop for op, flop in counter.get_flop_counts()["Global"].items()}
    ours = products(config, 2)
    assert sum(each.flop for each in ours) == counted["aten.addmm"] + counted["aten.mm"]
    # Plain attention: two products forward, four backward. The kernel's backward makes the logits once more.
    tokens = config.grid**2 + 2
    assert counted["aten.bmm"] == 6 * 2 * 2 * tokens**2 * config.width * config.depth
    attention = [
        of(step_parts(Settings(name, 2), UNPREDICTED), f"attention, {way}").flop for way in ("forward", "backward")
    ]
    assert sum(attention) == counted["aten.bmm"] * 7 / 6


def test_every_linear_layer_is_a_product_with_its_weights_shape() -> None:
    layers = [module for module in on_meta(SMALL).modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    shapes = sorted((layer.weight.shape[0], layer.weight[0].numel()) for layer in layers)
    ours = products(CONFIGS[SMALL], 4)
    assert sorted((each.columns, each.depth) for each in ours[: len(layers)]) == shapes
    assert sorted((each.rows, each.columns) for each in ours[len(layers) : 2 * len(layers)]) == shapes
    assert len(ours) == 3 * len(layers) - 1, "the images need no gradient"


def test_the_teachers_operations_exceed_the_students_step() -> None:
    live, cached = (Settings(SMALL, 256, teacher=teacher) for teacher in ("live", "cached"))
    teacher = of(step_parts(live, UNPREDICTED), "teacher")
    assert teacher.flop == pytest.approx(256 * 31.8e9, rel=0.002) and teacher.flop > total(step_parts(cached)).flop
    assert milliseconds(live) - milliseconds(cached) == pytest.approx(1e3 * teacher.flop / H100.product_rate)


@pytest.mark.parametrize(("name", "millions"), [(TINY, 5.9), (SMALL, 22.4), (BASE, 87.3)])
def test_parameters_are_the_papers(name: str, millions: float) -> None:
    assert round(parameters(name) / 1e6, 1) == millions
    assert of(step_parts(Settings(name, 1), UNPREDICTED), "AdamW").bytes == 44 * parameters(name)


def test_a_part_takes_its_bytes_or_a_product_its_operations() -> None:
    parts = step_parts(Settings(SMALL, 256), H100)
    for part in parts:
        if part.flop == 0 and part.bytes:
            assert part.seconds == pytest.approx(part.bytes / H100.bandwidth)
    made = of(parts, "152 matrix products")
    assert max(made.flop / H100.product_rate, made.bytes / H100.bandwidth) < made.seconds
    assert made.seconds < made.flop / H100.product_rate + made.bytes / H100.bandwidth
    slow = step_parts(Settings(SMALL, 256), replace(H100, product_rate=1e12))
    assert of(slow, "152").seconds == pytest.approx(made.flop / 1e12), "bound by operations alone"
    assert total(parts).seconds == pytest.approx(sum(part.seconds for part in parts))


def test_what_depends_on_the_images_grows_with_them_and_the_update_does_not() -> None:
    one, two = (step_parts(Settings(SMALL, batch), H100) for batch in (256, 512))
    for name in ("attention, forward", "LN, residual and GELU, backward", "sums", "augmentation", "loss"):
        assert of(two, name).seconds == pytest.approx(2 * of(one, name).seconds)
    for name in ("AdamW", "gaps"):
        assert of(two, name).seconds == of(one, name).seconds


def test_attention_takes_the_predicted_times_of_all_layers() -> None:
    parts = step_parts(Settings(BASE, 512), H100)
    assert of(parts, "attention, forward").seconds == pytest.approx(12 * 80e-6 * 512 * 12 / PAIRS)
    assert of(parts, "attention, backward").seconds == pytest.approx(12 * 220e-6 * 512 * 12 / PAIRS)
    assert of(parts, "attention, forward").spread == pytest.approx(RANGE * of(parts, "attention, forward").seconds)
    both = [part for part in parts if part.spread]
    assert len(both) == 3 and total(parts).spread == pytest.approx(sum(part.spread for part in both))
    large = step_parts(Settings(MODELS[3], 256), H100)
    assert of(large, "attention, backward").seconds == pytest.approx(12 * 2 * (900 + 289) * 1e-6), (
        "with the delta kernel"
    )


def test_attention_without_a_prediction_is_at_its_byte_floor_and_says_so() -> None:
    parts = step_parts(Settings(SMALL, 256), UNPREDICTED)
    tensor = 256 * 198 * 384 * 2
    assert of(parts, "attention, forward, byte floor").seconds == pytest.approx(12 * 4 * tensor / H100.bandwidth)
    assert of(parts, "attention, backward, byte floor").seconds == pytest.approx(12 * 8 * tensor / H100.bandwidth)
    assert "byte floor" not in "\n".join(details(Settings(SMALL, 256), H100))


def test_each_change_saves_what_it_does_not_move_any_more() -> None:
    base = Settings(SMALL, 256)
    before = milliseconds(base)
    rows, width = 256 * 198, 384
    mlp_rows = 11 * rows + 256 * 2  # the last block's MLP sees two tokens an image
    saved = {
        "gelu_in_products": 2 * 4 * width * mlp_rows * (1 + 2 + 1),  # one of two passes, two of three, the bias's sum
        "biases_in_norms": 2 * 2 * width * mlp_rows,
        "qkv_bias_in_attention": 2 * 3 * width * 12 * rows,
    }
    for name, size in saved.items():
        after = milliseconds(replace(base, **{name: True}))
        assert before - after == pytest.approx(1e3 * size / H100.bandwidth), name
    gaps = of(step_parts(base, H100), "gaps").seconds
    assert before - milliseconds(replace(base, graph=True)) == pytest.approx(1e3 * gaps)
    half = step_parts(replace(base, residual="bf16"), H100)
    for name in ("LN, residual and GELU, forward", "LN, residual and GELU, backward", "sums"):
        assert of(half, name).bytes < of(step_parts(base, H100), name).bytes
    rows = changes_table(base, H100)[2:]
    assert len(rows) == len(CHANGES) + 2
    assert [row for row in rows if "| +" in row] == [rows[-1]] and "550 TFLOP/s" in rows[-1]


def test_of_the_all_reduce_only_the_last_bucket_is_not_hidden() -> None:
    one, eight = Settings(SMALL, 256), Settings(SMALL, 256, cards=8)
    last = 2 * 7 / 8 * (25 << 20) / H100.link
    assert milliseconds(eight) - milliseconds(one) == pytest.approx(1e3 * last)
    tiny = of(step_parts(replace(eight, model=TINY), H100), "all-reduce")
    assert tiny.seconds == pytest.approx(2 * 7 / 8 * 4 * parameters(TINY) / H100.link), "one bucket holds it all"


def test_the_page_holds_what_the_command_prints(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["roofline"])
    main()
    printed = capsys.readouterr().out
    assert printed.endswith(f"{section(Machine())}\n")
    assert section(Machine()) in PAGE.read_text(), "type python -m benchmarks.compiled.roofline --write"
    for model in ("DeiT-Ti", "DeiT-S", "DeiT-B"):
        assert all(f"| {model}, {batch}" in printed for batch in (256, 512, 1024))


def test_the_page_states_what_is_assumed_of_the_machine() -> None:
    text = " ".join(PAGE.read_text().split())
    rates = f"{H100.product_rate / 1e12:.0f} TFLOP/s (data sheet: 989), bytes at {H100.bandwidth / 1e12:.1f} TB/s"
    exchange = f"{H100.link / 1e9:.0f} GB/s, hidden behind the backward but for DDP's last bucket of "
    for words in (rates, f"{H100.gap * 1e6:.0f} µs apart", f"{exchange}{H100.bucket >> 20} MiB"):
        assert words in text


def test_what_stays_on_paper_is_said_with_the_tables_gains() -> None:
    text = PAGE.read_text()
    on_paper = text[text.index("## On paper") :].partition("\n## ")[0]
    lines = {
        "CUDA graphs": "forward and backward as a CUDA graph",
        "The gradient of qkv's bias": "qkv's bias gradient in attention's backward",
        "Bias gradients of proj": "bias gradients of proj and fc2 in LN's backward",
    }
    for begin, row in lines.items():
        gain = re.search(rf"- \*\*{begin}[^−]*−([\d.]+) ms", on_paper)[1]
        in_table = re.search(rf"^\| {row} \| -([\d.]+) \|", text, flags=re.MULTILINE)[1]
        assert float(gain) == pytest.approx(float(in_table), abs=0.05), begin


def test_writing_replaces_what_stands_between_the_marks(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "speed-report.md"
    page.write_text(f"before\n\n{BEGIN}\nyesterday\n{roofline.END}\n\nafter\n")
    monkeypatch.setattr(roofline, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["roofline", "--write"])
    main()
    text = page.read_text()
    assert text.startswith(f"before\n\n{BEGIN}\n\n| model, images a card") and text.endswith("\n\nafter\n")
    assert "yesterday" not in text and written(text, section(Machine())) == text
    with pytest.raises(ValueError, match="lacks the lines"):
        written("before and after", "new")


def test_the_command_prints_the_parts_that_are_asked_for(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--batch", "256", "512", "--model", SMALL, "--teacher", "live", "--cards", "8", "--residual", "bf16"]
    monkeypatch.setattr("sys.argv", ["roofline", *asked])
    main()
    printed = capsys.readouterr().out
    for words in (
        "Not measured", "512 images a card", "bf16 between the blocks", "256 images a card, live labels, 8 cards",
        "| teacher RegNetY-16GF, forward |", "| all-reduce", "0.94 ± 0.24",
    ):  # fmt: skip
        assert words in printed
    assert "1024" not in printed and "DeiT-B" not in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch", "0"], "--batch and --cards are at least 1"),
        (["--cards", "0"], "--batch and --cards are at least 1"),
        (["--write", "--batch", "256"], "leave out --batch"),
        (["--model", "deit_small"], "invalid choice"),
    ],
)
def test_a_mistake_is_named(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["roofline", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and says in capsys.readouterr().err


def test_predictions_are_of_passes_that_fill_a_card_in_the_one_form_that_runs() -> None:
    assert attention_us(PREDICTED, "forward", 198, 64, 2 * PAIRS) == 160.0
    assert attention_us(PREDICTED, "both", 198, 64, PAIRS) == 300.0
    assert attention_us(PREDICTED, "backward", 578, 64, PAIRS) == 1189.0
    assert attention_us(PREDICTED, "forward", 198, 64, 6) is None, "six programs do not fill a card"
    assert attention_us(PREDICTED, "forward", 16, 64, PAIRS) is None, "predicted as None"
    assert attention_us(PREDICTED, "forward", 197, 64, PAIRS) is None
    other = {"attention_forward_tiled n198 d64": {"predicted_us": 90.0}}
    assert attention_us(PREDICTED | other, "forward", 198, 64, PAIRS) is None, "two forms: which runs is not known"
    assert predictions("sm_90").keys() >= {"attention_forward_resident n198 d64"} and predictions("sm_75") == {}


def test_the_page_states_the_frozen_predictions_with_their_range() -> None:
    page = (PAGE.parent / "predicted.md").read_text()
    frozen = json.loads((Path(roofline.__file__).with_name("predicted.json")).read_text())
    assert frozen["range"] == RANGE and f"commit {frozen['commit']} ({frozen['date']}" in page
    for row in ("forward, N = 198", "backward, N = 198", "forward, N = 578", "backward, N = 578"):
        cells = re.search(rf"^\| {row} \|(.*)\|$", page, flags=re.MULTILINE)[1].split("|")
        for target, cell in zip(("sm_80", "sm_89", "sm_90"), cells, strict=True):
            direction, tokens = row.split(", N = ")
            us = attention_us(predictions(target), direction, int(tokens), 64, PAIRS)
            assert [int(number) for number in re.findall(r"\d+", cell)] == pytest.approx(
                [us, 0.75 * us, 1.25 * us], abs=1
            )
    whole = augmentation_us()
    assert f"| {whole:.2f} ({0.75 * whole:.2f} to {1.25 * whole:.2f}) |" in page


def test_a_row_of_a_benchmark_finds_its_prediction_by_name() -> None:
    expected = {
        "attention[B256-N198-H6-bfloat16-forward]": 80.0,
        "attention[B256-N198-H12-bfloat16-backward]": 440.0,
        "attention_compiled[B256-N198-H12-bfloat16-backward]": None,  # ours once more, beside other peers
        "attention[B256-N578-H6-float16-both]": 1589.0,
        "attention[B1-N198-H6-bfloat16-forward]": None,
        "loss[hard-mixed-B256-C1000-forward]": 6.0,
        "loss[hard-mixed-B256-C1000-backward]": 5.0,
        "loss[hard-mixed-B256-C1000-both]": 11.0,
        "loss[hard-mixed-B1024-C1000-both]": None,
        "loss[soft-dense-B256-C1000-both]": None,
        "live_teacher[small]": None,
    }
    assert {name: row_us(PREDICTED, name) for name in expected} == expected


@pytest.mark.slow
def test_bytes_are_nearly_those_of_the_code_that_inductor_generates() -> None:
    """Two blocks are lowered for sm_90 without a card; Inductor counts the bytes of each kernel itself."""
    program = Path(__file__).with_name("inductor_code.py")
    run = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    forward, backward = json.loads(run.stdout).values()

    def named(kernels: dict[str, int], pattern: str) -> int:
        return sum(size for name, size in kernels.items() if re.match(pattern, name))

    config = replace(CONFIGS[SMALL], depth=2)
    ours = moved(Settings(SMALL, 256), config)
    sums = named(backward, r"triton_red_(?!.*layer_norm).*sum")
    assert sums == pytest.approx(ours["sums over rows: biases"], rel=0.02)
    assert named(backward, r"triton_red_.*layer_norm_backward") < 0.01 * sums, (
        "LN's weights are summed in LN's backward"
    )
    hidden_rows = 1536 * (256 * 198 + 2 * 256)
    assert named(forward, "triton_poi_fused_gelu") == pytest.approx(2 * 2 * hidden_rows, rel=0.01)
    assert named(backward, "triton_poi_fused_gelu") == pytest.approx(3 * 2 * hidden_rows, rel=0.01)
    counted = sum(size for name, size in ours.items() if not name.startswith(("loss", "AdamW")))
    whole = sum(forward.values()) + sum(backward.values())
    assert 1 < whole / counted < 1.15, "a bound, and not a loose one"
