"""Every form of a model beside each other: right, complete, and without the one that does not run here."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from deit_fast import load
from deit_fast.tools.benchmark import worker
from deit_fast.tools.benchmark.__main__ import main, table
from deit_fast.tools.benchmark.forms import FORMS, Form, forms_of
from deit_fast.tools.benchmark.worker import Broken, Opened, Worker
from deit_fast.tools.export.formats import export

FAST = ["--rounds", "2", "--threads", "1", "--batch-sizes", "1", "2"]


class Here(Opened):
    """A `Worker` without a process of its own."""

    def __init__(self, form: Form, threads: int) -> None:
        self.form, self.spent = form, 0.0
        super().__init__(form, threads)

    def run(self, batch: int, times: int) -> float:
        seconds = super().run(batch, times)
        self.spent += seconds
        return seconds

    def ask(self, method: str, *arguments: object) -> object:
        return getattr(self, method)(*arguments)

    def close(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No processes, and turns of one batch."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(worker, "Worker", Here)
    monkeypatch.setattr("deit_fast.tools.benchmark.__main__.TURN", 0.0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "exported"
    export(load(finished_run), "onnx", folder)
    return folder


def eager(run: Path, folder: Path) -> Form:
    (form,), _ = forms_of(str(run), ("eager",), folder, data="")
    return form


def check_table(models: list[Path], forms: list[str], images: Path, folder: Path, printed: str) -> None:
    """results.json and the printed table of a run's forms and of its export."""
    results = json.loads((folder / "a.json").read_text())
    rows = {(Path(row["model"]).name, row["form"]): row for row in results["rows"]}
    assert list(rows) == [*((models[0].name, form) for form in forms), ("exported", "onnx")]
    own = load(models[0])
    which = "ema" if "moving average" in own.source else "student"
    for row in rows.values():
        assert row["images"] == 15 and f"{row['top1']:.2f}" in printed
        if row["form"] != "int8":
            assert row["top1"] == pytest.approx(own.summary[which]["fused"]["top1"])
        assert list(row["images_per_second"]) == ["1", "2"] and [len(each) for each in row["rates"].values()] == [2, 2]
        numbers = [*row["images_per_second"].values(), row["first_call_seconds"], row["file_megabytes"]]
        assert all(number > 0 for number in numbers)
        assert row["memory_megabytes"] >= 0  # in this process a small model may fit into memory that is there already
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    assert results["versions"]["onnxruntime"] and results["threads"] == 1


def test_the_table_of_a_run_and_of_its_export(
    here, finished_run: Path, exported: Path, images: Path, tmp_path: Path, capsys
) -> None:
    out = ["--json", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png")]
    arguments = [str(finished_run), str(exported), "--data", str(images), "--forms", "eager"]
    assert main([*arguments, *FAST, *out]) == 0
    check_table([finished_run, exported], ["eager"], images, tmp_path, capsys.readouterr().out)


@pytest.mark.slow
def test_the_table_is_the_same_from_processes(
    finished_run: Path, exported: Path, images: Path, tmp_path: Path, capsys
) -> None:
    out = ["--json", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png")]
    arguments = [str(finished_run), str(exported), "--data", str(images), "--forms", "eager", "int8"]
    assert main([*arguments, *FAST, *out]) == 0
    check_table([finished_run, exported], ["eager", "int8"], images, tmp_path, capsys.readouterr().out)
    assert all(row["memory_megabytes"] > 0 for row in json.loads((tmp_path / "a.json").read_text())["rows"])


def test_a_narrow_terminal_cuts_no_head_and_no_number_off() -> None:
    row = {"model": "runs/deit-deit_small_distilled_patch16_224-0123abcd", "form": "compiled", "top1": 81.23,
           "images_per_second": {"1": 12.3, "32": 1234.5}, "first_call_seconds": 12.34, "file_megabytes": 89.1,
           "memory_megabytes": 1234.0}  # fmt: skip
    console = Console(width=80)
    with console.capture() as printed:
        console.print(table({"machine": "2-core", "threads": 2, "date": "today", "rows": [row]}, (1, 32)))
    words = printed.get().split()
    assert "…" not in printed.get() and words.count("images/s,") == 2
    assert {"compiled", "81.23", "12.3", "1,234.5", "12.34", "89.1", "1,234", "memory,"} <= set(words)


def test_the_rate_is_that_of_the_median_turn(here, finished_run: Path, tmp_path: Path, monkeypatch) -> None:
    """A turn has as many batches as fit into it; its seconds are those that the worker counted."""
    turns = []

    def run(self: Here, batch: int, times: int) -> float:
        turns.append((batch, times))
        seconds = times * (0.125, 0.125, 1.0, 0.5, 0.25, 0.125)[len(turns) - 1]
        self.spent += seconds
        return seconds

    monkeypatch.setattr(Here, "run", run)
    monkeypatch.setattr("deit_fast.tools.benchmark.__main__.TURN", 0.5)
    arguments = ["--forms", "eager", "--rounds", "3", "--batch-sizes", "4", "--json", str(tmp_path / "a.json")]
    assert main([str(finished_run), *arguments]) == 0
    (row,) = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert turns == [(4, 1)] * 2 + [(4, 4)] * 4, "two to begin with, one not counted, three rounds"
    assert row["rates"] == {"4": [8, 16, 32]} and row["images_per_second"] == {"4": 16}


def test_a_form_that_fails_is_left_out_and_named(
    here, finished_run: Path, exported: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    whole = Here.run

    def run(self: Here, batch: int, times: int) -> float:
        if self.form.form == "onnx":
            raise Broken("its process ended with -9; it may need more memory")
        return whole(self, batch, times)

    monkeypatch.setattr(Here, "run", run)
    arguments = [str(finished_run), str(exported), "--forms", "eager", *FAST, "--json", str(tmp_path / "a.json")]
    assert main(arguments) == 0
    results = json.loads((tmp_path / "a.json").read_text())
    assert [row["form"] for row in results["rows"]] == ["eager"]
    assert results["left_out"] == {f"{exported} onnx": "its process ended with -9; it may need more memory"}
    assert f"left out: {exported} onnx: its process ended" in capsys.readouterr().err
    assert main([str(exported), *FAST]) == 2
    assert "none of the models runs here" in capsys.readouterr().err


def test_a_process_answers_and_its_end_is_a_sentence(finished_run: Path, tmp_path: Path) -> None:
    one = Worker(eager(finished_run, tmp_path), 1)
    try:
        assert one.first.seconds > 0 and one.run(2, 3) == one.spent > 0 and one.ask("memory") > 0
        os.kill(one._process.pid, signal.SIGKILL)
        with pytest.raises(Broken, match="its process ended with -9; it may need more memory"):
            one.run(1, 1)
    finally:
        one.close()


def test_what_does_not_open_in_its_process_is_said_in_a_sentence(
    finished_run: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)  # of this process
    (tmp_path / "bad.onnx").write_bytes(b"none")
    form = replace(eager(finished_run, tmp_path), form="onnx", spec=str(tmp_path / "bad.onnx"))
    ours, theirs = Pipe()
    worker._serve(form, 1, theirs)
    answer = ours.recv()
    assert isinstance(answer, Broken) and "is no ONNX file" in str(answer)


def test_every_form_gives_the_models_logits(finished_run: Path, exported: Path, tmp_path: Path) -> None:
    forms, left_out = forms_of(str(finished_run), FORMS, tmp_path, data="")
    of_export, _ = forms_of(str(exported), FORMS, tmp_path, data="")
    assert [form.form for form in forms] == list(FORMS) and not left_out
    assert [form.form for form in of_export] == ["onnx"]
    given = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        expected = load(finished_run).model(given).numpy()
    for form in [*forms, *of_export]:
        if form.form == "compiled":
            continue  # minutes of a compiler; it is the same model
        apart = np.abs(form.open(threads=1)(given.numpy()) - expected).max()
        assert apart < (0.1 if form.form == "int8" else 1e-4) * np.abs(expected).max(), form.name


def test_int8_without_training_images_is_left_out_with_the_reason(
    tmp_path: Path, finished_run: Path, monkeypatch
) -> None:
    monkeypatch.setattr("deit_fast.tools.export.onnx_file.tensor_model", lambda trained: None)
    export(load(finished_run), "timm", tmp_path / "timm")
    forms, (left_out,) = forms_of(str(tmp_path / "timm"), ("eager", "int8"), tmp_path, data="")
    assert [form.form for form in forms] == ["eager"] and "type --data FOLDER" in left_out


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
