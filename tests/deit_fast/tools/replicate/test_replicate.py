"""The replication: which trainings it runs, that it continues, its arithmetic by hand, and its sentence."""

import dataclasses
import json
import re
import statistics
from pathlib import Path

import pytest

from deit_fast.config import Config
from deit_fast.files import Busy
from deit_fast.recipes.named import recipe
from deit_fast.tools.replicate import __main__ as replication
from deit_fast.tools.replicate import progress, report
from deit_fast.tools.replicate.__main__ import Settings, main, replicate, students, teachers
from deit_fast.train import Summary, train
from tests.deit_fast.conftest import tiny_config


@pytest.fixture
def small(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two seeds of trainings that take a fraction of a second each."""
    student = tiny_config(images, tmp_path).replace(epochs=1, warmup_epochs=0.5)
    sizes = {"patch_size": 0, "width": 0, "depth": 0, "heads": 0, "drop_path": 0.0}
    convnet = student.replace(model="test_efficientnet", distill="none", teacher="", **sizes)
    monkeypatch.setattr(replication, "_recipes", lambda _: (student, convnet))
    monkeypatch.setattr("deit_fast.train.dry_run._SECONDS", 0.01)
    monkeypatch.setattr(replication, "TRANSFORMERS", {"photos": {"model": replication.PLAIN, "epochs": 2}})
    return Settings(data=str(images), seeds=2, out=str(tmp_path / "replication"), threads=1)


def test_a_replication_continues_and_its_rows_are_the_heads_of_its_runs(small: Settings, monkeypatch) -> None:
    trained: list[str] = []

    def counting(config: Config) -> Summary:
        if config.run.dry_run:
            return train(config)
        if len(trained) == 5 and "interrupted" not in trained:
            trained.append("interrupted")
            raise KeyboardInterrupt
        if not (config.run_folder() / "summary.json").exists():
            trained.append(config.run_folder().name)
        return train(config)

    monkeypatch.setattr(progress, "train", counting)
    with pytest.raises(KeyboardInterrupt):
        replicate(small)
    results, folder = replicate(small, ["--seeds", "2"]), small.folder()
    runs = [name for name in trained if name != "interrupted"]
    assert len(trained) == 13 and len(set(runs)) == 12, "none was trained twice"
    assert sorted(runs) == sorted(path.name for path in folder.iterdir() if path.is_dir())

    def top1(run: str, head: str) -> float:
        return json.loads((folder / run / "summary.json").read_text())["student"][head]["top1"]

    for key, run, head in (
        ("none", "none", "cls"), ("soft", "soft", "cls"), ("hard", "hard", "cls"),
        ("class", "token", "cls"), ("distillation", "token", "dist"), ("both", "token", "softmax"),
    ):  # fmt: skip
        assert results["table3"][key]["top1"] == [top1(f"seed{seed}-{run}", head) for seed in (0, 1)]
    assert results["table2"]["convnet"]["top1"] == results["table3"]["both"]["top1"]
    assert results["table2"]["transformer"]["top1"] == [top1(f"seed{s}-transformer", "softmax") for s in (0, 1)]
    for name in ("convnet", "transformer"):
        assert results["teachers"][name]["top1"] == top1(f"teacher-{name}", "cls")
    assert json.loads((folder / "results.json").read_text()) == results
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "labels.png").read_bytes().startswith(b"\x89PNG")
    names, percent = results["table4"]["names"], results["table4"]["percent"]
    assert names[0] == "true labels" and results["table4"]["seeds"] == 2
    for name, head, run in (
        ("not distilled", "cls", "none"),
        ("class token", "cls", "token"),
        ("both", "softmax", "token"),
    ):
        wrong = [100 - top1(f"seed{seed}-{run}", head) for seed in (0, 1)]
        assert percent[0][names.index(name)] == pytest.approx(statistics.mean(wrong), abs=0.01)
    assert all(percent[a][b] == percent[b][a] for a in range(6) for b in range(6)) and percent[2][2] == 0
    labels = results["labels"]
    assert labels["images"] == 24 and 0 <= labels["other"] <= 100
    both = (labels["cls_with_teacher"], labels["cls_with_label"])
    assert both == (None, None) or 0 <= sum(both) <= 100, (
        "of a teacher's other label and the label, one at most is said"
    )
    assert results["command"] == "deit-fast replicate --seeds 2"
    assert results["runs"].keys() == set(runs)
    assert results["runs"]["seed1-token"]["student"]["dist"]["top1"] == results["table3"]["distillation"]["top1"][1]


@pytest.mark.parametrize("data", ["mnist5k", "photos", "digits", "/flowers"])
def test_four_trainings_and_a_fifth_by_another_teacher_share_their_teachers(data: str) -> None:
    settings = Settings(data=data, seeds=3)
    both, every = teachers(settings), list(students(settings))
    assert [key for _, key, _ in every[:5]] == ["none", "soft", "hard", "token", "transformer"]
    assert len(every) == 15
    for seed, key, training in every:
        config = training.config
        config.check()
        assert (config.optim.seed, config.optim.data_seed, config.data.data) == (seed, seed, data)
        teacher = {"none": "", "transformer": both["transformer"].config.run.out}.get(
            key, both["convnet"].config.run.out
        )
        assert config.distill.teacher == teacher
    soft = every[1][2].config.distill
    assert (soft.distill_on, soft.alpha, soft.tau, soft.kl_normalizer) == ("class", 0.1, 3.0, "batch")
    for training in both.values():
        training.config.check()
    assert "net" in both["convnet"].config.model.model and "deit" in both["transformer"].config.model.model


def test_on_mnist5k_each_side_has_its_own_settings_and_the_shorter_pair_comes_last() -> None:
    every = list(students(Settings(seeds=2, shorter=3)))
    assert [key for _, key, _ in every[-4:]] == ["none-shorter", "token-shorter"] * 2 and len(every) == 14
    first = {key: training.config for seed, key, training in every if seed == 0}
    for key, config in first.items():
        own = recipe("mnist5k-alone" if key.startswith("none") else "mnist5k")
        assert (config.data.crop_scale, config.optim.lr, config.data.data) == (
            own.data.crop_scale,
            own.optim.lr,
            "mnist5k",
        )
        divisor = 3 if key.endswith("shorter") else 1
        epochs, warmup = own.optim.epochs // divisor, own.optim.warmup_epochs / divisor
        assert (config.optim.epochs, config.optim.warmup_epochs) == (epochs, warmup)


def test_without_a_finished_training_there_is_nothing_to_report(small: Settings) -> None:
    with pytest.raises(ValueError, match="leave out --report"):
        replicate(dataclasses.replace(small, report=True))
    assert not small.folder().exists()


def test_a_report_is_of_the_seeds_that_are_finished(small: Settings) -> None:
    """One seed of all trainings, and of the second seed the first three."""
    runs = [*teachers(small).values(), *(training for *_, training in students(small))]
    for training in runs[:10]:
        train(training.config)
    results = replicate(dataclasses.replace(small, report=True))
    rows = results["table3"]
    assert [rows[key]["seeds"] for key in ("none", "soft", "hard", "both")] == [[0, 1], [0, 1], [0, 1], [0]]
    pairs = {(claim["better"], claim["worse"]): claim["pairs"] for claim in results["claims"]}
    assert pairs["hard", "none"] == 2 and pairs["both", "none"] == 1
    assert results["table4"]["seeds"] == 1
    assert len([path for path in small.folder().iterdir() if path.is_dir()]) == 10


def test_what_another_process_trains_comes_last(small: Settings, monkeypatch) -> None:
    trainings = [*teachers(small).values(), *(training for *_, training in students(small))][:4]
    order: list[str] = []
    refused = {trainings[0].name: 2, trainings[3].name: 1}

    def shared(config: Config) -> Summary:
        if config.run.dry_run:
            return train(config)
        name = next(one.name for one in trainings if one.config == config)
        order.append(name)
        if refused.get(name, 0):
            refused[name] -= 1
            raise Busy(f"{config.run.out} is being trained by process 7")
        return train(config)

    monkeypatch.setattr(progress, "train", shared)
    monkeypatch.setattr(progress, "_WAIT", 0.0)
    progress.train_all(trainings)
    names = [one.name for one in trainings]
    # The ConvNet is taken; the fourth, the second student, learns from it and is not even tried.
    assert order[:3] == [names[0], names[1], names[2]] and order.count(names[3]) == 2
    assert order.index(names[3]) > [place for place, name in enumerate(order) if name == names[0]][2]
    assert all(progress.finished(one.config) for one in trainings)


def test_the_time_is_estimated_first_and_what_is_left_is_said(small: Settings, capsys) -> None:
    trainings = [*teachers(small).values(), next(students(small))[2]]
    progress.train_all(trainings)
    said = capsys.readouterr().out
    assert re.search(r"3 trainings of 3 to go: \d+ min, an estimate", said)
    assert all(f"training {number} of 3: " in said for number in (1, 2, 3))
    assert said.index("an estimate") < said.index("training 1 of 3")
    progress.train_all(trainings)
    assert "to go" not in capsys.readouterr().out


def test_a_teacher_costs_its_forward_passes(small: Settings, monkeypatch) -> None:
    both, every = teachers(small), {key: training for _, key, training in students(small)}

    def measured(config: Config) -> Summary:
        assert config.run.dry_run and config.distill.distill == "none" and not config.distill.teacher
        rate = 10.0 if config.model.model == both["convnet"].config.model.model else 50.0
        return Summary(Path(), {"plan": {"images": 100 * config.optim.epochs, "together": rate}})

    monkeypatch.setattr(progress, "train", measured)
    seconds = progress._expected(list(every.values()), [*both.values(), *every.values()])
    epochs = every["none"].config.optim.epochs
    assert seconds[every["none"].name] == pytest.approx(100 * epochs / 50)
    assert seconds[every["token"].name] == pytest.approx(100 * epochs / 50 + 100 * epochs / (3 * 10))


def test_fewer_epochs_shorten_the_warm_up_as_well() -> None:
    whole, half = (next(students(Settings(data="digits", epochs=epochs)))[2].config for epochs in (0, 15))
    assert (whole.optim.epochs, half.optim.epochs) == (30, 15)
    assert half.optim.warmup_epochs == whole.optim.warmup_epochs / 2


def test_a_batch_size_for_small_data_holds_for_every_training() -> None:
    settings = Settings(data="/flowers", batch_size=8)
    every = [*teachers(settings).values(), *(training for *_, training in students(settings))]
    assert {training.config.optim.batch_size for training in every} == {8}
    assert {training.config.optim.batch_size for training in teachers(Settings(data="/flowers")).values()} != {8}


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
    return {**named, **report.results(measured, {"convnet": {"top1": 90.0}, "transformer": {"top1": 91.0}})}


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
    text = report.sentence(results)
    assert text.startswith("On nothing, epochs: 7, seeds: 3, the paper's order holds in 1 (hard distillation of the ")
    assert "is reversed in 1 (hard distillation beats soft: -1.0 ± 0.0 points)" in text
    assert "is undecided in 4 (" in text and text.endswith("of 6 comparisons.")
    assert text.count(".\n") == 0


def test_one_seed_decides_nothing() -> None:
    assert report.compare([90.0], [10.0]) == {"difference": 80.0, "half_interval": None, "verdict": "undecided"}


def test_many_seeds_have_a_narrower_interval() -> None:
    values = [1.0, 2.0] * 20
    few, many = report.compare(values[:4], [0.0] * 4), report.compare(values, [0.0] * 40)
    assert many["half_interval"] < few["half_interval"]
    assert many["half_interval"] == pytest.approx(report.T[-1] * statistics.stdev(values) / 40**0.5)


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
    assert committed["sentence"] == report.sentence(committed)
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
