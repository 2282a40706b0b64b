"""Tuning with the interpreter in the card's place: the rows that it writes are rows that the ops take."""

import json
from pathlib import Path

import pytest
import torch

from deit_kernels import attention_qkvpacked, tune
from deit_kernels.short_attention import configuration
from deit_kernels.short_attention.configuration import Config, choose


def test_a_tuned_table_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Config("tiled", 64, 32, 4, 2)
    monkeypatch.setattr(tune, "best_first", lambda direction, card, length: [wanted])
    sizes = {"batch": 1, "heads": 1, "features": 64, "lengths": {64: 33}}
    rows = tune.tune(90, torch.device("cpu"), lambda run: 1.0, ahead=lambda *_: None, **sizes)
    table = tmp_path / "table.json"
    tune.write_table(table, list(rows), {})
    assert len(json.loads(table.read_text())["attention"]) == 2
    qkv = torch.randn(1, 33, 3, 1, 64, dtype=torch.float16)
    expected = attention_qkvpacked(qkv)
    monkeypatch.setenv("DEIT_KERNELS_TABLE", str(table))
    configuration.forget()
    assert choose("forward", 90, 33, 64, 1, 1) == choose("backward", 90, 33, 64, 1, 1) == wanted
    torch.testing.assert_close(attention_qkvpacked(qkv), expected, rtol=1e-3, atol=1e-3)
    assert choose("forward", 90, 65, 64, 1, 1) != wanted, "of a length that was not measured it says nothing"
    monkeypatch.undo()
    configuration.forget()
