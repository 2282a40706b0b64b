"""Every form of a model beside each other: right, complete, and without the one that does not run here."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deit_fast import load
from deit_fast.tools.benchmark.__main__ import main
from deit_fast.tools.benchmark.forms import FORMS, forms_of
from deit_fast.tools.benchmark.worker import Broken, Worker
from deit_fast.tools.export.formats import export

FAST = ["--rounds", "2", "--threads", "1", "--batch-sizes", "1", "2"]


def test_the_table_of_a_run_and_of_its_export(finished_run: Path, images: Path, tmp_path: Path, capsys) -> None:
    export(load(finished_run), "onnx", tmp_path / "exported")
    out = ["--json", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png")]
    models = [str(finished_run), str(tmp_path / "exported")]
    assert main([*models, "--data", str(images), "--forms", "eager", "int8", *FAST, *out]) == 0
    printed, results = capsys.readouterr().out, json.loads((tmp_path / "a.json").read_text())
    rows = {(Path(row["model"]).name, row["form"]): row for row in results["rows"]}
    assert list(rows) == [("run", "eager"), ("run", "int8"), ("exported", "onnx")]
    own = load(finished_run)
    which = "ema" if "moving average" in own.source else "student"
    for row in rows.values():
        assert row["images"] == 15 and f"{row['top1']:.2f}" in printed
        if row["form"] != "int8":
            assert row["top1"] == pytest.approx(own.summary[which]["fused"]["top1"])
        assert list(row["images_per_second"]) == ["1", "2"] and [len(each) for each in row["rates"].values()] == [2, 2]
        numbers = [*row["images_per_second"].values(), row["first_call_seconds"], row["file_megabytes"]]
        assert all(number > 0 for number in [*numbers, row["memory_megabytes"]])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert results["versions"]["onnxruntime"] and results["threads"] == 1


def test_every_form_gives_the_models_logits(finished_run: Path, tmp_path: Path) -> None:
    export(load(finished_run), "onnx", tmp_path / "exported")
    forms, left_out = forms_of(str(finished_run), FORMS, tmp_path, data="")
    exported, _ = forms_of(str(tmp_path / "exported"), FORMS, tmp_path, data="")
    assert (
        [form.form for form in forms] == list(FORMS) and not left_out and [form.form for form in exported] == ["onnx"]
    )
    given = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        expected = load(finished_run).model(given).numpy()
    for form in [*forms, *exported]:
        if form.form == "compiled":
            continue  # minutes of a compiler; it is the same model
        apart = np.abs(form.open(threads=1)(given.numpy()) - expected).max()
        assert apart < (0.1 if form.form == "int8" else 1e-4) * np.abs(expected).max(), form.name


def test_int8_without_training_images_is_left_out_with_the_reason(tmp_path: Path, finished_run: Path) -> None:
    export(load(finished_run), "timm", tmp_path / "timm")
    forms, (left_out,) = forms_of(str(tmp_path / "timm"), ("onnx", "int8"), tmp_path, data="")
    assert [form.form for form in forms] == ["onnx"] and "type --data FOLDER" in left_out


def test_a_form_that_does_not_run_is_left_out(finished_run: Path, tmp_path: Path) -> None:
    (form,), _ = forms_of(str(finished_run), ("onnx",), tmp_path, data="")
    Path(form.spec).write_bytes(b"none")
    with pytest.raises(Broken, match="is no ONNX file"):
        Worker(form, 1)


def test_weights_alone_take_the_classes_of_the_data(finished_run: Path, images: Path, tmp_path: Path) -> None:
    file = next((finished_run / "checkpoints").glob("best_*.safetensors"))
    (tmp_path / "alone.safetensors").write_bytes(file.read_bytes())
    spec = {"trained": load(finished_run), "alone": load(tmp_path / "alone.safetensors", heads=2)}
    assert spec["alone"].classes != spec["trained"].classes
    (own,), _ = forms_of(str(finished_run), ("eager",), tmp_path, data="")
    nameless = replace(own, classes=spec["alone"].classes, known=False)
    assert nameless.of_data(str(images)).classes == own.of_data(str(images)).classes == spec["trained"].classes
    with pytest.raises(ValueError, match="classes"):
        replace(own, classes=["a", "b"], known=False).of_data(str(images))


def test_mistakes_are_sentences(finished_run: Path, tmp_path: Path, capsys) -> None:
    run = str(finished_run)
    for arguments, says in [
        (["deit_tny_patch16_224"], "did you mean"),
        ([run, "--rounds", "0"], "--rounds is 1 or more, got 0"),
        ([run, "--batch-sizes", "0", "1"], "--batch-sizes is 1 or more, got 0"),
        ([run, "--threads", "-1"], "--threads is 1 or more"),
        ([run, run], "is named twice"),
        ([run, "--json", "no/folder/a.json"], "type --json"),
        ([run, "--data", "nowhere"], "nowhere"),
    ]:
        assert main([*arguments, "--forms", "eager"]) == 2, arguments
        assert says in capsys.readouterr().err
