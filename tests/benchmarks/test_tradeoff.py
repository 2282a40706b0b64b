"""The trade-off's numbers against known ones; its table and picture hold what was measured and what is the paper's."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from benchmarks.tradeoff import measure
from benchmarks.tradeoff.measure import gmacs, main, memory_of
from benchmarks.tradeoff.table import NETWORKS, select
from deit_fast import create_model
from deit_fast.model import CONFIGS
from deit_fast.train import train
from tests.deit_fast.conftest import tiny_config, write_images

# GMACs and parameters of timm's results tables, and RegNetY-16GF's.
KNOWN = {
    "deit_tiny_patch16_224": (1.26, 5_717_416),
    "deit_small_patch16_224": (4.61, 22_050_664),
    "deit_base_patch16_224": (17.58, 86_567_656),
    "deit_tiny_distilled_patch16_224": (1.27, 5_910_800),
    "regnety_160": (15.96, 83_590_140),
}


@pytest.mark.parametrize("name", KNOWN)
def test_multiply_accumulates_and_parameters_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name) if name in CONFIGS else timm.create_model(name)
        counted = gmacs(model.eval(), torch.empty(1, 3, 224, 224))
    known, parameters = KNOWN[name]
    if name in CONFIGS:  # our last block leaves out projection and MLP of the patches, which no head reads
        known -= 14 * 14 * 9 * CONFIGS[name].width ** 2 / 1e9
    assert counted == pytest.approx(known, rel=0.01)  # timm also counts norms and activations
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card's allocator counts instead")
def test_memory_is_the_most_that_is_alive_at_once() -> None:
    """100 + 10 floats, then 10 + 1000: the first 100 have been freed by then."""
    first, second = nn.Linear(100, 10, bias=False), nn.Linear(10, 1000, bias=False)

    def call() -> None:
        x = torch.zeros(1, 100)
        x = first(x)
        x = second(x)
        del x

    with torch.no_grad():
        assert memory_of(call) == 4 * (10 + 1000)


def test_the_papers_table_is_complete() -> None:
    assert len(NETWORKS) == len({network.label for network in NETWORKS}) == 25
    assert {network.label for network in NETWORKS if network.paper.real is None} == {"EfficientNet-B7"}
    for network in NETWORKS:
        assert network.architecture in CONFIGS or timm.is_model(network.architecture)
    distilled = {network.label: network for network in NETWORKS}["DeiT-B⚗↑384/1000 epochs"]
    assert tuple(distilled.paper) == (85.8, 85.2, 89.3, 75.2)
    assert distilled.architecture == "deit_base_distilled_patch16_384"


def test_networks_are_chosen_by_how_their_names_begin() -> None:
    assert [network.label for network in select(["DeiT-S"])] == ["DeiT-S", "DeiT-S⚗", "DeiT-S⚗/1000 epochs"]
    assert select([]) == list(NETWORKS)
    with pytest.raises(ValueError, match="no network is called Deit-S: did you mean DeiT-S or"):
        select(["Deit-S"])


def test_table_and_picture(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two architectures in three lines, each measured once a round; a picture; what is the paper's says so."""
    built: list[str] = []
    build = measure.build
    monkeypatch.setattr(measure, "build", lambda name: built.append(name) or build(name))
    file, picture = tmp_path / "table.json", tmp_path / "figure.png"
    command = ["--networks", "DeiT-Ti⚗", "EfficientNet-B0", "--batch-size", "1", "--rounds", "2"]
    assert main([*command, "--json", str(file), "--picture", str(picture)]) == 0
    assert built == ["efficientnet_b0", "deit_tiny_distilled_patch16_224"] * 2
    results = json.loads(file.read_text())
    assert [row["label"] for row in results["rows"]] == ["EfficientNet-B0", "DeiT-Ti⚗", "DeiT-Ti⚗/1000 epochs"]
    for row in results["rows"]:
        assert row["images_per_second"] > row["slowest"] > 0, "of two rounds"
        assert row["memory_bytes"] > 4 * row["parameters"] > 0
        assert row["ratio"] == row["images_per_second"] / results["rows"][0]["images_per_second"]
    assert results["rows"][1]["images_per_second"] == results["rows"][2]["images_per_second"]
    assert [row["paper"]["imagenet"] for row in results["rows"]] == [77.1, 74.5, 76.6]
    assert results["command"].startswith("python -m benchmarks.tradeoff ") and results["machine"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "top-1 (paper)" in out and "DeiT-Ti⚗/1000 epochs" in out


def test_a_run_stands_beside_them_with_its_own_accuracy(tmp_path: Path) -> None:
    config = tiny_config(write_images(tmp_path / "images"), tmp_path / "run")
    finished_run = train(config.replace(model="deit_tiny_patch16_224", distill="none", teacher="")).run
    file = tmp_path / "table.json"
    command = ["--networks", "DeiT-Ti", "--batch-size", "1", "--rounds", "1", "--runs", str(finished_run)]
    assert main([*command, "--json", str(file)]) == 0
    row = json.loads(file.read_text())["rows"][-1]
    summary = json.loads((finished_run / "summary.json").read_text())
    assert row["ours"]["top1"] == max(summary[part]["cls"]["top1"] for part in ("student", "ema"))
    assert (row["label"], row["size"], row["paper"], row["ours"]["classes"]) == ("run", 16, None, 3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--networks", "ResNet"], "no network is called ResNet"),
        (["--runs", "runs/none"], "there is no file or folder runs/none"),
        (["--rounds", "0"], "type 1 or more"),
    ],
)
def test_a_wrong_command_is_one_sentence(capsys, arguments: list[str], says: str) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
