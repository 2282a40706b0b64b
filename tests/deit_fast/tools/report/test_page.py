"""The page of a run: what it says, that names are text in it, and that it never spoils a finished training."""

import dataclasses
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from deit_fast.config import Config
from deit_fast.recipes.named import parse
from deit_fast.tools.report import page
from deit_fast.tools.report.__main__ import main
from deit_fast.tools.report.facts import Facts
from deit_fast.train.__main__ import main as train_main
from tests.deit_fast.command import command_line
from tests.deit_fast.tools.report.conftest import NAMES
from tests.deit_fast.world import world

CPU = torch.device("cpu")


class Elements(HTMLParser):
    """Every element's name and attributes, and the text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._inside = "", ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


@pytest.fixture(autouse=True)
def teacher_on_the_path(teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(teachers)


@pytest.fixture(scope="module")
def lists(reported: Path, teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What --json holds."""
    file = tmp_path_factory.mktemp("json") / "lists.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(teachers)
        assert main([str(reported), "--json", str(file), "--out", str(file.with_suffix(".html"))]) == 0
    return json.loads(file.read_text())


def test_a_training_leaves_a_page_that_refers_to_nothing_outside(reported: Path) -> None:
    html = (reported / "report.html").read_text()
    assert len(html) < 10_000_000
    addresses = [value for _, attributes in Elements(html).tags for name, value in attributes.items()
                 if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset")]  # fmt: skip
    assert len(addresses) > 20
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|https?://(?!www\.w3\.org)", html)
    assert "default-src 'none'" in html


def test_class_names_and_files_are_text(reported: Path) -> None:
    elements = Elements((reported / "report.html").read_text())
    for name in NAMES:
        assert name in elements.text
    assert "0 <b>.png" in elements.text and "7 * 7" in elements.text and "49" not in NAMES[2]
    assert not [attributes for tag, attributes in elements.tags if "onerror" in attributes or tag == "alert"]


def test_scores_are_those_of_the_summary(reported: Path, lists: dict) -> None:
    summary = json.loads((reported / "summary.json").read_text())
    found = {(row["model"], row["head"]): row["top1"] for row in lists["scores"]}
    assert found["teacher", ""] == summary["teacher"]["top1"]
    assert found["last weights", "distillation token"] == summary["student"]["dist"]["top1"]
    assert found["moving average", "fused, mean logits"] == summary["ema"]["fused"]["top1"]
    assert lists["best"]["top1"] == max(summary["student"]["fused"]["top1"], summary["ema"]["fused"]["top1"])


def test_mistakes_and_rights_are_all_images_where_there_are_few(lists: dict) -> None:
    wrong = sum(pair["count"] for pair in lists["confusions"])
    assert len(lists["mistakes"]) == wrong and len(lists["rights"]) == min(12, 15 - wrong)
    assert 100 * (15 - wrong) / 15 == pytest.approx(lists["best"]["top1"])
    assert sum(row["support"] for row in lists["per_class"]) == 15
    heads = [one["head"] for one in lists["mistakes"][0]["answers"]]
    assert heads == ["class token", "distillation token", "fused, mean logits", "fused, mean softmax", "teacher"]
    sure = [one["answers"][2]["probability"] for one in lists["mistakes"]]
    assert sure == sorted(sure, reverse=True)
    assert all(Path(item["path"]).is_file() for item in lists["mistakes"] + lists["rights"])


def test_the_pages_answers_are_the_models(reported: Path, lists: dict) -> None:
    from deit_fast import load

    trained = load(str(reported))
    item = lists["rights"][0]
    (answer,) = trained.predict([item["path"]], top=1)
    name, _, probability = answer.top[0]
    fused = item["answers"][2]
    assert (fused["class"], fused["probability"]) == (name, pytest.approx(probability, abs=1e-5))


def test_the_planted_duplicate_is_found_across_the_splits(lists: dict) -> None:
    (pair,) = [pair for pair in lists["duplicates"] if pair["correlation"] > 0.999]
    assert pair["across"] and pair["labels_differ"]
    assert sorted(image["path"].split("/")[-2] for image in pair["images"]) == sorted([NAMES[0], NAMES[1]])


def test_the_time_is_all_of_it(reported: Path, lists: dict) -> None:
    parts = {part["key"]: part["seconds"] for part in lists["time"]["parts"]}
    assert parts.keys() >= {"teacher", "forward", "backward", "optimiser", "evaluation", "checkpoint", "the rest"}
    assert sum(parts.values()) == pytest.approx(lists["time"]["seconds"])
    assert {part["key"] for part in lists["time"]["beside"]} >= {"read", "decode", "augment"}
    assert "short a training" in lists["time"]["headroom"]["left_out"]


def test_the_command_trains_the_same_weights(reported: Path, lists: dict) -> None:
    again = parse(shlex.split(lists["command"])[2:], "")
    run = Config.from_json(reported / "config.json")
    assert again.identity() == run.identity()
    assert (again.teacher_cache, again.out) == (run.teacher_cache, f"{run.out}-again")


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"alpha": 0.3, "distill": "soft", "tau": 3.0, "kl_normalizer": "batch"}, {"decay_dist_token": False},
        {"crop_scale": (0.5, 0.75), "exif_orientation": True, "rand_augment": "rand-m9-mstd0.5-inc1"},
        {"recipe": "demo", "distill": "none", "teacher": "", "model": "deit_tiny_patch16_224"},
    ],
)  # fmt: skip
def test_the_command_says_every_flag(reported: Path, changes: dict) -> None:
    facts = Facts.read(reported)
    config = dataclasses.replace(facts.config, **changes)
    command = shlex.split(dataclasses.replace(facts, config=config).command())
    assert parse(command[2:], "").identity() == config.identity()


@pytest.mark.parametrize("gone", ["images", "other labels", "weights"])
def test_without_images_the_page_says_so(reported: Path, tmp_path: Path, gone: str) -> None:
    run = shutil.copytree(reported, tmp_path / "run")
    if gone == "images":
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"data": "/moved/away"}))
    elif gone == "other labels":
        data = json.loads((run / "data.json").read_text())
        (run / "data.json").write_text(json.dumps(data | {"labels": "0" * 64}))
    else:
        shutil.rmtree(run / "checkpoints")
    assert main([str(run)]) == 0
    text = Elements((run / "report.html").read_text()).text
    assert "No images on this page." in text and "Worst mistakes" not in text and "Training loss" in text
    if gone == "images":
        assert "/moved/away" in text


def test_an_unreadable_image_is_left_out_and_counted(reported: Path, odd_images: Path, tmp_path: Path) -> None:
    images, run = shutil.copytree(odd_images, tmp_path / "images"), shutil.copytree(reported, tmp_path / "run")
    broken = images / "val" / NAMES[2] / "1 <b>.png"
    broken.write_bytes(b"no image")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"data": str(images)}))
    found = page.write(Facts.read(run), run / "report.html", CPU, threads=1)
    assert found["notes"] == ["1 validation images cannot be read: deit-fast data check says why."]
    assert sum(row["support"] for row in found["per_class"]) == 14


def test_a_run_without_a_teacher_and_its_gain(reported: Path, plain: Path, tmp_path: Path) -> None:
    assert not (plain / "report.html").exists()
    found = page.write(Facts.read(reported), tmp_path / "a.html", CPU, 1, baseline=Facts.read(plain))
    own, theirs = Facts.read(reported).best(), Facts.read(plain).best()
    assert found["gain"]["points"] == pytest.approx(own[1] - theirs[1])
    assert found["gain"]["same_images"] and found["gain"]["others"] == []
    alone = page.write(Facts.read(plain), tmp_path / "b.html", CPU, 1)
    assert [row["head"] for row in alone["scores"]] == ["class token", "class token"]
    assert alone["gain"] is None


def test_several_runs_side_by_side(reported: Path, plain: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(reported), str(plain), "--json", "both.json"]) == 0
    found = json.loads(Path("both.json").read_text())
    assert found["names"] == ["taught", "plain"]
    flags = {row["flag"]: row["values"] for row in found["differences"]}
    assert flags["--distill"] == ["hard", "none"] and "--epochs" not in flags and "--out" not in flags
    teacher = next(row for row in found["scores"] if row["name"] == "teacher")
    assert teacher["values"][1] is None and teacher["best"] == [0]
    assert found["gains"][0]["baseline"] == "plain"
    text = Elements(Path("comparison.html").read_text()).text
    assert "--distill" in text and "taught" in text and "Worst mistakes" not in text


def test_the_teacher_beside_its_student_is_no_run_without_one(reported: Path, plain: Path, tmp_path: Path) -> None:
    run = shutil.copytree(reported, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"teacher": str(plain)}))
    found = page.compare([Facts.read(run), Facts.read(plain)], tmp_path / "both.html")
    assert found["gains"] == []


def test_runs_of_one_name_are_told_apart_by_their_folders(reported: Path, tmp_path: Path) -> None:
    first, second = (shutil.copytree(reported, tmp_path / name / "run") for name in ("a", "b"))
    found = page.compare([Facts.read(first), Facts.read(second)], tmp_path / "both.html")
    assert found["names"] == ["a/run", "b/run"] and found["differences"] == []


@pytest.mark.parametrize("error", [RuntimeError("a template\nis wrong"), MemoryError(), OSError(28, "No space left")])
def test_a_report_that_fails_is_a_sentence_and_the_training_stays_finished(
    odd_config: Config, tmp_path: Path, monkeypatch, capsys, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(page, "write", fail)
    run = tmp_path / "run"
    config = dataclasses.replace(odd_config, out=str(run), epochs=1, teacher_cache="")
    assert train_main(command_line(config)) == 0
    assert (run / "summary.json").is_file() and not (run / "report.html").exists()
    said = [line for line in capsys.readouterr().out.splitlines() if "report.html is not written" in line]
    assert len(said) == 1 and type(error).__name__ in said[0] and f"deit-fast report {run}" in said[0]


def test_no_report_writes_none(odd_config: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = dataclasses.replace(odd_config, out=str(run), epochs=1, report=False, teacher_cache="")
    assert train_main(command_line(config)) == 0
    assert not (run / "report.html").exists() and (run / "report.png").exists()


def commanded(rank: int, config: Config) -> int:
    return train_main(command_line(config))


def test_of_two_ranks_the_first_writes_the_page_and_the_other_waits(odd_config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(odd_config, out=str(tmp_path / "run"), teacher_cache="")
    with world(2, tmp_path / "printed", commanded, config) as running:
        assert running.wait() == [0, 0], [running.printed(rank) for rank in range(2)]
        assert f"report: {tmp_path / 'run' / 'report.html'}" in running.printed(0)
    found = page.write(Facts.read(tmp_path / "run"), tmp_path / "again.html", CPU, 1)
    assert "one process only" in found["time"]["headroom"]["left_out"] and found["processes"] == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{missing}"], "is not a run (config.json is missing)"),
        (["{run}", "--baseline", "{run}"], "learned from a teacher itself: type a run without one"),
        (["{run}", "{plain}", "--baseline", "{plain}"], "name it among the runs"),
        (["{run}", "--images", "-1"], "--images -1: type 0 or more"),
        (["{run}", "--out", "/no/folder/page.html"], "type --out and the path of a file in a folder that exists"),
    ],
)
def test_a_mistake_is_a_sentence(reported: Path, plain: Path, tmp_path: Path, capsys, arguments, says: str) -> None:
    known = {"missing": str(tmp_path / "none"), "run": str(reported), "plain": str(plain)}
    assert main([argument.format(**known) for argument in arguments]) == 2
    assert says in capsys.readouterr().err


def test_fewer_images_are_a_random_part_and_said(reported: Path, tmp_path: Path) -> None:
    found = page.write(Facts.read(reported), tmp_path / "page.html", CPU, 1, most=9)
    assert sum(row["support"] for row in found["per_class"]) == 9
    assert sorted(row["support"] for row in found["per_class"])[0] > 0  # not the first class alone
    assert "Looked at 9 of 24 training images, chosen at random." in found["notes"]


def test_an_unfinished_run_has_a_page(reported: Path, tmp_path: Path) -> None:
    run = shutil.copytree(reported, tmp_path / "run")
    (run / "summary.json").unlink()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')  # cut off
    found = page.write(Facts.read(run), run / "report.html", CPU, 1)
    assert not found["finished"] and found["best"] is not None
    assert "not finished yet" in (run / "report.html").read_text()


def test_older_runs_say_that_parts_of_their_time_are_unknown(reported: Path, tmp_path: Path) -> None:
    run = shutil.copytree(reported, tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    old = [{key: value for key, value in row.items() if key not in ("seconds", "grad_norm", "headroom", "machine")}
           for row in rows if "headroom" not in row]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    found = page.write(Facts.read(run), run / "report.html", CPU, 1)
    parts = {part["key"]: part["share"] for part in found["time"]["parts"]}
    assert not found["time"]["whole"] and parts.keys() <= {"wait", "teacher", "the rest"}
    assert sum(parts.values()) == pytest.approx(1.0)
    assert "did not measure" in (run / "report.html").read_text()
    assert np.isfinite(found["time"]["seconds"])
