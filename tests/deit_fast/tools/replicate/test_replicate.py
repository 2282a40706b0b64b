"""The replication: which trainings it runs, that it continues, its arithmetic by hand, and its sentence."""

import dataclasses
import json
import re
import statistics
from pathlib import Path

import pytest

from deit_fast.config import Config
from deit_fast.files import Busy, read_json, write_json
from deit_fast.recipes.named import OF_BUILT_IN_DATA, RECIPES, recipe
from deit_fast.tools.replicate import __main__ as replication
from deit_fast.tools.replicate import tables
from deit_fast.tools.replicate import trials as harness
from deit_fast.tools.replicate.__main__ import Settings, main, replicate, trials
from deit_fast.tools.replicate.trials import T, compare, expected, finished, train_all
from deit_fast.train import Summary
from tests.deit_fast.conftest import tiny_config


@pytest.fixture
def small(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two seeds of trainings that take a fraction of a second each."""
    student = tiny_config(images, tmp_path).replace(epochs=1, warmup_epochs=0.5)
    sizes = {"patch_size": 0, "width": 0, "depth": 0, "heads": 0, "drop_path": 0.0}
    convnet = student.replace(model="test_efficientnet", distill="none", teacher="", **sizes)
    monkeypatch.setitem(OF_BUILT_IN_DATA, str(images), "tiny")
    for name, config in {"tiny": student, "tiny-teacher": convnet}.items():
        fields = {field: value for field, value in config.flat().items() if field != "recipe"}
        monkeypatch.setitem(RECIPES, name, ("", fields))
    monkeypatch.setattr("deit_fast.train.dry_run._SECONDS", 0.01)
    monkeypatch.setattr(replication, "TRANSFORMERS", {"photos": {"model": replication.PLAIN, "epochs": 2}})
    return Settings(data=str(images), seeds=2, out=str(tmp_path / "replication"), threads=1)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the trainings that were begun; each ends at once, with scores that its name decides."""
    names: list[str] = []

    def at_once(config: Config) -> Summary:
        folder = config.run_folder()
        if config.run.dry_run:
            assert config.distill.distill == "none" and not config.distill.teacher
            rate = 10.0 if config.model.model == "test_efficientnet" else 50.0
            return Summary(Path(), {"plan": {"images": 100 * config.optim.epochs, "together": rate}})
        if not (folder / "summary.json").exists():
            names.append(folder.name)
            folder.mkdir(parents=True)
            write_json(folder / "summary.json", {"student": heads(*(len(folder.name) + part for part in range(3)))})
        return Summary(folder, read_json(folder / "summary.json"))

    monkeypatch.setattr(harness, "train", at_once)
    monkeypatch.setattr(harness, "_WAIT", 0.0)
    monkeypatch.setattr("deit_fast.tools.replicate.explained.table4", lambda pairs: {"seeds": len(pairs)})
    monkeypatch.setattr("deit_fast.tools.replicate.explained.draw_labels", lambda taught, target: {})
    return names


def stop_before(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """Let the training of this number raise an error, once."""
    whole, calls = harness.train, []

    def stopping(config: Config) -> Summary:
        calls.append(config.run.dry_run)
        if not config.run.dry_run and calls.count(False) == number:
            raise error
        return whole(config)

    monkeypatch.setattr(harness, "train", stopping)


def scores_of(folder: Path, run: str, head: str) -> float:
    return json.loads((folder / run / "summary.json").read_text())["student"][head]["top1"]


def test_a_replication_trains_writes_and_shows_everything(small: Settings, capsys) -> None:
    folder = small.folder()
    arguments = ["--data", small.data, "--seeds", "1", "--threads", "1", "--out", str(folder)]
    assert main(arguments) == 0
    said, results = capsys.readouterr().out, json.loads((folder / "results.json").read_text())
    for table in ("table3", "table2"):
        for row in results[table].values():
            assert re.search(rf"│ {re.escape(row['row'])} .* {row['mean']:.1f} ", said)
    assert results["sentence"] in said and results["command"].startswith("deit-fast replicate --data ")
    for picture in ("results.png", "labels.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG") and str(folder / picture) in said
    names, percent = results["table4"]["names"], results["table4"]["percent"]
    assert names[0] == "true labels" and results["table4"]["seeds"] == 1
    for name, run, head in (
        ("teacher", "teacher-convnet", "cls"), ("not distilled", "seed0-none", "cls"),
        ("class token", "seed0-token", "cls"), ("both", "seed0-token", "softmax"),
    ):  # fmt: skip
        assert percent[0][names.index(name)] == pytest.approx(100 - scores_of(folder, run, head), abs=0.01)
    assert all(percent[a][b] == percent[b][a] for a in range(6) for b in range(6)) and percent[2][2] == 0
    labels = results["labels"]
    assert labels["images"] == 24 and 0 <= labels["other"] <= 100
    both = (labels["cls_with_teacher"], labels["cls_with_label"])
    assert both == (None, None) or 0 <= sum(both) <= 100, (
        "of a teacher's other label and the label, one at most is said"
    )
    runs = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert sorted(results["runs"]) == runs and len(runs) == 7
    assert re.search(r"7 trainings of 7 to go: \d+ min, an estimate", said)
    places = [said.index(f"training {number} of 7: {name};") for number, name in enumerate(results["runs"], 1)]
    assert said.index("an estimate") < places[0] and places == sorted(places)
    assert results["configurations"]["token"]["teacher"] == str(folder / "teacher-convnet")


def test_a_replication_continues_and_its_rows_are_the_heads_of_its_runs(
    small: Settings, started: list[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    stop_before(monkeypatch, 6, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        replicate(small)
    results, folder = replicate(small, ["--seeds", "2"]), small.folder()
    assert len(started) == 12 and len(set(started)) == 12, "none was trained twice"
    assert "7 trainings of 12 to go" in capsys.readouterr().out
    for key, run, head in (
        ("none", "none", "cls"), ("soft", "soft", "cls"), ("hard", "hard", "cls"),
        ("class", "token", "cls"), ("distillation", "token", "dist"), ("both", "token", "softmax"),
    ):  # fmt: skip
        assert results["table3"][key]["top1"] == [scores_of(folder, f"seed{seed}-{run}", head) for seed in (0, 1)]
    assert results["table2"]["convnet"]["top1"] == results["table3"]["both"]["top1"]
    both = [scores_of(folder, f"seed{seed}-transformer", "softmax") for seed in (0, 1)]
    assert results["table2"]["transformer"]["top1"] == both
    for name in ("convnet", "transformer"):
        assert results["teachers"][name]["top1"] == scores_of(folder, f"teacher-{name}", "cls")
    assert json.loads((folder / "results.json").read_text()) == results
    assert results["table4"]["seeds"] == 2 and results["command"] == "deit-fast replicate --seeds 2"
    assert sorted(results["runs"]) == sorted(started)
    replicate(small)
    assert len(started) == 12 and "to go" not in capsys.readouterr().out


@pytest.mark.parametrize("data", ["mnist5k", "photos", "digits", "/flowers"])
def test_four_trainings_and_a_fifth_by_another_teacher_share_their_teachers(data: str) -> None:
    settings = Settings(data=data, seeds=3)
    every = trials(settings)
    kinds = ["none", "soft", "hard", "token", "transformer"]
    students = [f"seed{seed}-{key}" for seed in range(3) for key in kinds]
    assert list(every) == ["teacher-convnet", "teacher-transformer", *students]
    for name, config in every.items():
        config.check()
        assert config.run.out == str(settings.folder() / name) and config.data.data == data
        assert config.run.eval_every == config.optim.epochs and config.run.keep == 1 and not config.run.report
    for name in students:
        seed, _, key = name.removeprefix("seed").partition("-")
        optim, teacher = every[name].optim, "transformer" if key == "transformer" else "convnet"
        assert (optim.seed, optim.data_seed, optim.ema_decay) == (int(seed), int(seed), 0.0)
        assert every[name].distill.teacher == ("" if key == "none" else every[f"teacher-{teacher}"].run.out)
    soft = every["seed0-soft"].distill
    assert (soft.distill_on, soft.alpha, soft.tau, soft.kl_normalizer) == ("class", 0.1, 3.0, "batch")
    assert "net" in every["teacher-convnet"].model.model and "deit" in every["teacher-transformer"].model.model


def test_on_mnist5k_each_side_has_its_own_settings_and_the_shorter_pair_comes_last() -> None:
    every = trials(Settings(seeds=2, shorter=3))
    last = [f"seed{seed}-{key}-shorter" for seed in (0, 1) for key in ("none", "token")]
    assert list(every)[-4:] == last and len(every) == 16
    for name, config in every.items():
        if not name.startswith("seed0-"):
            continue
        own = recipe("mnist5k-alone" if "none" in name else "mnist5k")
        assert (config.data.crop_scale, config.optim.lr) == (own.data.crop_scale, own.optim.lr)
        divisor = 3 if name.endswith("shorter") else 1
        epochs, warmup = own.optim.epochs // divisor, own.optim.warmup_epochs / divisor
        assert (config.optim.epochs, config.optim.warmup_epochs) == (epochs, warmup)


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_the_trainings_are_those_of_the_committed_results(name: str) -> None:
    """Their settings as they were, so that what was trained by an earlier version is found finished."""
    file = Path(__file__).parents[4] / "benchmarks" / "results" / f"replicate-{name}.json"
    committed = json.loads(file.read_text())
    shorter = 3 if committed.get("shorter") else 0
    every = trials(Settings(data=name, seeds=1, shorter=shorter, epochs=committed["epochs"]))
    assert {run.removeprefix("seed0-") for run in every} == committed["configurations"].keys()
    for run, config in every.items():
        then, now = committed["configurations"][run.removeprefix("seed0-")], config.identity()
        changed = {key for key in then if key in now and then[key] != now[key]}
        assert not changed, f"{run}: {[(key, then[key], now[key]) for key in changed]}"


def test_without_a_finished_training_there_is_nothing_to_report(small: Settings) -> None:
    with pytest.raises(ValueError, match="leave out --report"):
        replicate(dataclasses.replace(small, report=True))
    assert not small.folder().exists()


def test_a_report_is_of_the_seeds_that_are_finished(small: Settings, started: list[str], monkeypatch) -> None:
    """One seed of all trainings, and of the second seed the first three."""
    stop_before(monkeypatch, 11, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        replicate(small)
    results = replicate(dataclasses.replace(small, report=True))
    rows = results["table3"]
    assert [rows[key]["seeds"] for key in ("none", "soft", "hard", "both")] == [[0, 1], [0, 1], [0, 1], [0]]
    pairs = {(claim["better"], claim["worse"]): claim["pairs"] for claim in results["claims"]}
    assert pairs["hard", "none"] == 2 and pairs["both", "none"] == 1
    assert results["table4"]["seeds"] == 1 and len(started) == 10


def test_what_another_process_trains_comes_last(small: Settings, started: list[str], monkeypatch, capsys) -> None:
    every = dict(list(trials(small).items())[:4])
    whole, order = harness.train, []
    refused = {"teacher-convnet": 2, "seed0-soft": 1}

    def shared(config: Config) -> Summary:
        name = config.run_folder().name
        if not config.run.dry_run:
            order.append(name)
            if refused.get(name, 0):
                refused[name] -= 1
                raise Busy(f"{config.run.out} is being trained by process 7")
        return whole(config)

    monkeypatch.setattr(harness, "train", shared)
    train_all(every, expected(every))
    # The ConvNet is taken; seed0-soft learns from it and is not even tried.
    assert order[:3] == ["teacher-convnet", "teacher-transformer", "seed0-none"] and order.count("seed0-soft") == 2
    assert order.index("seed0-soft") > [place for place, name in enumerate(order) if name == "teacher-convnet"][2]
    assert list(finished(every)) == list(every)
    assert capsys.readouterr().out.count("is being trained by process 7") == 2, "each is said once"


def test_a_teacher_costs_its_forward_passes(small: Settings, started: list[str]) -> None:
    every = trials(small)
    seconds, epochs = expected(every), every["seed0-none"].optim.epochs
    assert list(seconds) == list(every) and not started
    assert seconds["seed0-none"] == pytest.approx(100 * epochs / 50)
    assert seconds["seed0-token"] == pytest.approx(100 * epochs / 50 + 100 * epochs / (3 * 10))


def test_fewer_epochs_shorten_the_warm_up_as_well() -> None:
    whole, half = (trials(Settings(data="digits", epochs=epochs))["seed0-none"] for epochs in (0, 15))
    assert (whole.optim.epochs, half.optim.epochs) == (30, 15)
    assert half.optim.warmup_epochs == whole.optim.warmup_epochs / 2


def test_a_batch_size_for_small_data_holds_for_every_training() -> None:
    every = trials(Settings(data="/flowers", batch_size=8)).values()
    assert {config.optim.batch_size for config in every} == {8}
    assert {config.optim.batch_size for config in trials(Settings(data="/flowers")).values()} != {8}


def heads(cls: float, dist: float = 0.0, softmax: float = 0.0) -> dict:
    return {name: {"top1": value} for name, value in (("cls", cls), ("dist", dist), ("softmax", softmax))}


@pytest.fixture
def results() -> dict:
    """Three seeds in which hard beats none by 4, 5 and 6 points, soft beats hard by one, and the rest is a draw."""
    lists = {
        "none": [heads(50.0), heads(60.0), heads(70.0)],
        "soft": [heads(55.0), heads(66.0), heads(77.0)],
        "hard": [heads(54.0), heads(65.0), heads(76.0)],
        "token": [heads(50.0, 51.0, 52.0), heads(60.0, 59.0, 66.0), heads(70.0, 70.0, 77.0)],
        "transformer": [heads(0.0, 0.0, 52.0), heads(0.0, 0.0, 66.0), heads(0.0, 0.0, 77.0)],
    }
    measured = {key: dict(enumerate(scores)) for key, scores in lists.items()}
    named = {"data": "nothing", "epochs": 7, "seeds": 3}
    return {**named, **tables.results(measured, {"convnet": {"top1": 90.0}, "transformer": {"top1": 91.0}})}


def test_mean_deviation_and_verdicts_are_those_by_hand(results: dict) -> None:
    hard = results["table3"]["hard"]
    assert (hard["mean"], hard["std"]) == (65.0, pytest.approx(11.0))
    claims = {(claim["better"], claim["worse"]): claim for claim in results["claims"]}
    first = claims["hard", "none"]  # 4, 5, 6: mean 5, deviation 1; 4.30 is Student's t for two degrees of freedom
    assert first["difference"] == 5 and first["half_interval"] == pytest.approx(4.30 / 3**0.5, rel=1e-3)
    assert first["verdict"] == "holds"
    assert (claims["hard", "soft"]["difference"], claims["hard", "soft"]["verdict"]) == (-1, "reversed")
    assert claims["distillation", "class"]["verdict"] == "undecided"
    assert claims["convnet", "transformer"] == {
        **claims["convnet", "transformer"], "difference": 0, "half_interval": 0, "verdict": "undecided",
    }  # fmt: skip


def test_the_sentence_says_what_holds_what_is_reversed_and_what_is_open(results: dict) -> None:
    text = tables.sentence(results)
    assert text.startswith("On nothing, epochs: 7, seeds: 3, the paper's order holds in 1 (hard distillation of the ")
    assert "is reversed in 1 (hard distillation beats soft: -1.0 ± 0.0 points)" in text
    assert "is undecided in 4 (" in text and text.endswith("of 6 comparisons.")
    assert text.count(".\n") == 0


def test_one_seed_decides_nothing() -> None:
    assert compare([90.0], [10.0]) == {"difference": 80.0, "half_interval": None, "verdict": "undecided"}


def test_many_seeds_have_a_narrower_interval() -> None:
    values = [1.0, 2.0] * 20
    few, many = compare(values[:4], [0.0] * 4), compare(values, [0.0] * 40)
    assert many["half_interval"] < few["half_interval"]
    assert many["half_interval"] == pytest.approx(T[-1] * statistics.stdev(values) / 40**0.5)


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_the_committed_replication_is_what_its_numbers_say(name: str) -> None:
    """Five seeds or more, with command, day and machine, and a sentence that follows from the numbers beside it."""
    file = Path(__file__).parents[4] / "benchmarks" / "results" / f"replicate-{name}.json"
    committed = json.loads(file.read_text())
    assert committed["seeds"] >= 5 and re.match(r"(python -m deit_fast\.|deit-fast )replicate ", committed["command"])
    assert committed["date"] and committed["machine"] and committed["versions"]["torch"]
    for row in (*committed["table3"].values(), *committed["table2"].values()):
        assert len(row["top1"]) == len(row.get("seeds", range(committed["seeds"])))
        assert row["mean"] == pytest.approx(statistics.mean(row["top1"]))
        assert row["std"] == pytest.approx(statistics.stdev(row["top1"]))
    assert committed["sentence"] == tables.sentence(committed)
    assert file.with_suffix(".png").exists()


def test_the_page_of_the_claim_states_the_committed_numbers() -> None:
    """Every row and every comparison of the results file stands on the page, rounded as there."""
    root = Path(__file__).parents[4]
    committed = json.loads((root / "benchmarks" / "results" / "replicate-mnist5k.json").read_text())
    page = (root / "docs" / "the-claim.md").read_text()
    for table in ("table3", "shorter"):
        for row in committed[table].values():
            assert f"| {row['mean']:.1f} ± {row['std']:.1f} | {len(row['seeds'])} |" in page, row["row"]
    for claim in committed["claims"]:
        said = f"{claim['difference']:+.1f} ± {claim['half_interval']:.1f} | {claim['pairs']} | {claim['verdict']} |"
        assert f"| {claim['claim']} | {said}" in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seeds", "0"], "--seeds 0 trains nothing: type --seeds 5"),
        (["--epochs", "-1"], "--epochs -1"),
        (["--batch-size", "-1"], "--batch-size -1"),
        (["--shorter", "1"], "--shorter 1: type a divisor of the epochs, such as 3"),
        (["--data", "digit"], "did you mean digits?"),
    ],
)
def test_a_wrong_command_is_one_sentence(tmp_path: Path, capsys, arguments: list[str], says: str) -> None:
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
