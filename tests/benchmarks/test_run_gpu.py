"""run_gpu.sh as far as it can be shown without a card: it refuses, and parts become one file, the worst rows last."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from benchmarks.__main__ import groups
from benchmarks.card import __main__ as run_on_card
from benchmarks.card import results as card_results
from benchmarks.card.__main__ import steps
from benchmarks.card.quarantine import USES, entries, failures, unfinished
from tests.benchmarks.results import measured

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/run_gpu.sh"
# In the order in which they run.
STEPS = [
    "first_tests", "first_rows", "constants", "attention_tests", "attention", "loss_tests", "loss", "build",
    "augmentation_tests", "step", "training_tests", "train", "counters", "augment", "inference", "tune", "overhead",
    "resume", "loader", "compiled_peers",
]  # fmt: skip
ON_ATTENTION = {"attention", "step", "train", "inference", "tune", "overhead", "compiled_peers"}


def test_every_group_is_measured_and_every_test_on_a_card_named_exists() -> None:
    listed = steps(parallel=True)
    assert [step.name for step in listed] == STEPS
    named = [word for step in listed for word in step.arguments if word.endswith(".py") and "/" in word]
    assert len(set(named)) == 7 and all((ROOT / name).exists() for name in named)
    measured = {step.arguments[2] for step in listed if step.arguments[:2] == ["-m", "benchmarks"]}
    assert measured == {*groups()} - {"ranks"}
    assert sum(step.seconds for step in listed[:4]) < 8 * 60
    assert {*USES} <= {*STEPS}


# A python that has a card: it writes down what it is asked for; it fails, hangs, or its tests do, where it is told to.
STUB = """#!{python} -S
import json, os, sys, time

words, said = sys.argv[1:], " ".join(sys.argv[1:])
if words[0] == "-c" and "is_available" in said:
    print("A-Card abc1234 abc1234", os.environ["PARALLEL"])
    sys.exit()
if words[:2] in (["-m", "benchmarks.card"], ["-m", "benchmarks.card.results"]):
    os.execv("{python}", ["{python}", *words])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(said.replace("\\n", " ") + "\\n")
if os.environ["FAIL"] in said:
    print("SyntaxError: a broken file", file=sys.stderr)
    sys.exit(3)
if os.environ["HANG"] in said:
    time.sleep(100)
wrong = json.loads(os.environ["WRONG"])  # (test, outcome, message), once each
if "--journal" in words:
    path = words[words.index("--journal") + 1]
    seen = open(path).read() if os.path.exists(path) else ""
    for test, outcome, message in wrong:
        if test.partition("::")[0] in words and test not in seen and not ("-k" in words and "198-64" not in test):
            with open(path, "a") as journal:
                journal.write(json.dumps({"test": test, "outcome": outcome, "message": message}) + "\\n")
            sys.exit({"failed": 1, "began": -9}[outcome])
for word in words:
    if word.endswith(".json"):
        open(word, "w").write('{results}')
"""


Wrong = tuple[str, str, str]  # test, outcome, message


class Outcome(NamedTuple):
    code: int
    printed: str
    steps: list[str]  # as the script names them when they begin
    calls: list[str]  # the arguments of every python


@pytest.fixture
def with_a_card(tmp_path: Path):
    """Runs the script with a card and settings of its environment."""
    results = json.dumps(measured(0, rows=1) | {"minutes": 1.0, "date": "2026-11-25"})
    stub, calls = tmp_path / "python", tmp_path / "calls"
    stub.write_text(STUB.replace("{python}", sys.executable).replace("{results}", results))
    stub.chmod(0o755)

    def run(results: str | Path = tmp_path / "out.json", wrong: list[Wrong] = [], **settings: str) -> Outcome:  # noqa: B006
        calls.write_text("")
        environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(stub), "CALLS": str(calls), "WRONG": json.dumps(wrong)}
        environment |= {"FAIL": "no such words", "HANG": "no such words", "PARALLEL": "yes"} | settings
        command = ["bash", SCRIPT, results]
        # SIGINT is ignored where a script runs this in its background.
        command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        steps = re.findall(r"^\d\d:\d\d:\d\d (\w+)$", done.stdout, flags=re.MULTILINE)
        return Outcome(done.returncode, done.stdout, steps, calls.read_text().splitlines())

    return run


def test_deit_s_is_proven_and_timed_first_and_what_compiles_for_long_comes_last(with_a_card) -> None:
    code, _, steps, calls = with_a_card()
    assert code == 0 and steps == STEPS
    run = [call for call in calls if call.startswith(("-m", "setup.py"))]
    first_tests, first_rows, *_, last = run
    assert re.match(
        r"-m pytest .*-k 198-64 tests/kernels/attention/test_attention_on_a_card\.py -p benchmarks\.card\.journal ",
        first_tests,
    )
    assert "-m benchmarks attention -k (B256-N198-H6 or agree) and not compiled and not flex --out " in first_rows
    assert "-m benchmarks attention -k compiled or flex --out " in last
    compiling = [call for call in run if call.startswith("-m benchmarks attention") and "not compiled" not in call]
    assert compiling == [last]
    proofs = [call for call in run if call.startswith("-m pytest")]
    assert ["-n 8" in call for call in proofs] == [False, True, True, True, True]
    for group in ("attention", "loss", "augment"):
        order = [call.partition(f"test_{group}_")[1] or call for call in run]
        proven = order.index(f"test_{group}_")
        assert all(proven < index for index, call in enumerate(run) if call.startswith(f"-m benchmarks {group}"))


def test_the_tests_run_without_xdist_too(with_a_card) -> None:
    code, _, steps, calls = with_a_card(PARALLEL="no")
    assert code == 0 and steps == STEPS and not any("-n 8" in call for call in calls)


def test_every_step_runs_once_and_only_what_failed_runs_again(with_a_card, tmp_path: Path) -> None:
    code, printed, steps, _ = with_a_card(FAIL="-m benchmarks train")
    assert code == 1 and "train is left out: exit code 3, in part at least" in printed
    assert steps == STEPS
    merged = json.loads((tmp_path / "out.json").read_text())
    assert merged["left out"] == ["train is left out: exit code 3, in part at least"] and len(merged["rows"]) == 8
    code, printed, steps, _ = with_a_card()
    assert code == 0 and steps == ["train"] and "loss: done before" in printed
    merged = json.loads((tmp_path / "out.json").read_text())
    assert merged["left out"] == [] and len(merged["rows"]) == 9 and "tuned" in merged
    assert "train is left out" in (tmp_path / "out.log").read_text()


def test_a_group_that_cannot_be_imported_is_left_out_with_the_reason(with_a_card) -> None:
    code, printed, steps, _ = with_a_card(FAIL="import benchmarks.bench_inference")
    assert code == 0 and "inference is left out: SyntaxError: a broken file" in printed
    assert steps == [step for step in STEPS if step != "inference"]


ATTENTION, LOSS, AUGMENT = (
    f"tests/kernels/{name}.py"
    for name in ("attention/test_attention_on_a_card", "distill_loss/test_loss_on_a_card", "augment/test_augment_gpu")
)
TRAINING = "tests/deit_fast/train/test_step.py"
DEIT_S = f"{ATTENTION}::test_error_is_at_most_twice_that_of_plain_pytorch[198-64-torch.bfloat16-many]"


@pytest.mark.parametrize(
    ("test", "message", "op", "not_timed"),
    [
        (f"{LOSS}::test_each_kind_of_call", "off by one", "loss", {"loss", "step", "train", "tune", "overhead"}),
        (f"{AUGMENT}::test_every_op[a]", "a byte", "augmentation", {"augment", "overhead"}),
        (f"{TRAINING}::test_on_a_card", "it waits", "training", {"train"}),
        (f"{ATTENTION}::test_capture_and_replay[1]", "stale", "attention", ON_ATTENTION),
        (DEIT_S, "output: error 1", "attention N198 D64 bfloat16",
         {"first_rows", *ON_ATTENTION} - {"attention", "compiled_peers"}),
        (DEIT_S, "gradient of key: error 1", "attention backward N198 D64 bfloat16",
         {"first_rows", "step", "train", "tune", "overhead"}),
    ],
)  # fmt: skip
def test_a_wrong_result_keeps_what_uses_its_op_from_being_timed_and_nothing_else(
    with_a_card, tmp_path: Path, test: str, message: str, op: str, not_timed: set[str]
) -> None:
    code, printed, steps, _ = with_a_card(wrong=[(test, "failed", message)])
    assert code == 3 and f"quarantine: {op}, no time of it is stated" in printed and f"{test}: {message}" in printed
    assert steps == [step for step in STEPS if step not in not_timed]
    merged = json.loads((tmp_path / "out.json").read_text())
    assert merged["failed"] == [{"op": op, "test": test, "message": message}]
    assert merged["left out"] == [f"{step} is left out: tests of {op} failed" for step in STEPS if step in not_timed]
    assert ("step by part" in merged) == ("step" not in not_timed | {"step" * (op == "training")})


def test_a_test_that_ends_its_process_fails_and_the_next_process_goes_on(with_a_card, tmp_path: Path) -> None:
    crashes = [(f"{LOSS}::test_{number}", "began", "") for number in range(2)]
    code, _, steps, calls = with_a_card(wrong=crashes)
    assert code == 3 and len([call for call in calls if LOSS in call]) == 3 and "augment" in steps
    merged = json.loads((tmp_path / "out.json").read_text())
    assert [each["test"] for each in merged["failed"]] == [test for test, *_ in crashes]
    assert all("the process ended in it, or it took more than 60 s" in each["message"] for each in merged["failed"])
    code, _, steps, _ = with_a_card()
    assert code == 3 and steps == [], "a second try does not clear unchanged sources"


def test_tests_that_cannot_even_begin_are_a_failure_of_their_op(with_a_card) -> None:
    code, printed, steps, _ = with_a_card(FAIL=f"-n 8 {LOSS}")
    assert code == 3 and "pytest ended with exit code" in printed and "loss" not in steps and "augment" in steps


def test_tests_that_do_not_end_in_time_go_on_with_the_same_command(with_a_card) -> None:
    code, printed, steps, _ = with_a_card(HANG="-k 198-64", LIMIT="20")
    assert code == 1 and "first_tests is left out: exit code 124" in printed and steps == ["first_tests"]
    waiting = "first_rows is left out: tests of attention N198 D64 bfloat16 have not ended: run the same command again"
    assert waiting in printed
    code, _, steps, _ = with_a_card()
    assert code == 0 and steps == STEPS


# What a card makes of tests: wrong, a process that dies, one that hangs, a context that no test can use any more.
TESTS = """
import os, sys, time, pytest
def test_right(): pass
def test_wrong(): assert 1 == 2, "a byte"
def test_crashes(): os.abort()
def test_hangs(): time.sleep(100)
def test_poisons():
    def synchronize(): raise RuntimeError("an illegal memory access")
    cuda = type("cuda", (), {"is_available": lambda: True, "synchronize": synchronize})
    sys.modules["torch"] = type("torch", (), {"cuda": cuda})
    assert False
@pytest.mark.skip
def test_skipped(): pass
def test_after(): assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("workers", [[], pytest.param(["-n", "2"], marks=pytest.mark.slow)], ids=["alone", "xdist"])
def test_the_journal_leaves_no_test_without_an_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: list[str]
) -> None:
    file = tmp_path / "test_card.py"
    file.write_text(TESTS)
    monkeypatch.setattr(run_on_card, "HANG", 1)
    monkeypatch.setattr(run_on_card, "BEGAN", time.monotonic())  # the module may be older than its limit
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'kernels'}")
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, str(file)]
    hour = run_on_card.Hour(tmp_path)
    assert hour.prove(run_on_card.Step("tests", 300, arguments, proves="training")) == 0
    outcomes = {entry["test"].rpartition("::")[2]: entry["outcome"] for entry in entries(hour.journal)}
    wrong = {"test_wrong", "test_crashes", "test_hangs", "test_poisons"}
    assert {name for name, outcome in outcomes.items() if outcome == "failed"} == wrong
    assert {*outcomes} - wrong == {"test_right", "test_skipped", "test_after"}
    assert unfinished(hour.journal) == [] and "a byte" in failures(hour.journal)[0].message


def test_rows_that_use_what_is_wrong_are_named_and_have_no_numbers(tmp_path: Path) -> None:
    rows = [
        row("attention[B256-N198-H6-bfloat16-forward]", 100.0),
        row("attention[B256-N198-H6-bfloat16-both]", 300.0),
        row("attention[B256-N578-H6-bfloat16-both]", 900.0),
        row("attention_compiled[B1-N198-H6-bfloat16-backward]", 20.0),
        row("student_only[small]", 40.0, unit="images/s") | {"group": "train"},
        row("inference[small-256]", 40.0, unit="images/s") | {"group": "inference"},
        row("all_threads", 40.0, unit="images/s") | {"group": "augment"},
        row("on_a_card", 40.0, unit="images/s") | {"group": "augment"},
    ]
    kept = [0, 2, 5, 6]
    counters = {"kernels": [{"name": "f", "op": "attention"}, {"name": "a", "op": "augmentation"}]}
    for name, content in {"all": {"minutes": 1.0, "rows": rows}, "step": {"parts": []}, "counters": counters}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    wrong = [(DEIT_S, "gradient of query: error"), (f"{AUGMENT}::test_every_op[a]", "a byte")]
    lines = [json.dumps({"test": test, "outcome": "failed", "message": message}) for test, message in wrong]
    (tmp_path / "tests.jsonl").write_text("\n".join([*lines, '{"test": "cut o']))
    merged = card_results.merge(tmp_path)
    assert merged["rows"] == [rows[number] for number in kept]
    assert merged["counters"]["kernels"] == counters["kernels"][:1] and "step by part" not in merged
    named = [f"{each['group']} {each['name'].removeprefix('test_')}" for each in rows]
    assert merged["quarantine"] == {
        "attention backward N198 D64 bfloat16": ["step by part", named[1], named[3], named[4]],
        "augmentation": ["counters: a", named[7]],
    }


def test_relative_paths_are_of_the_folder_where_it_is_typed(with_a_card, tmp_path: Path) -> None:
    code, printed, _, _ = with_a_card(results="out.json")
    assert code == 0 and (tmp_path / "out.json").exists() and f"results: {tmp_path / 'out.json'}" in printed


def test_a_step_that_hangs_ends_at_the_limit_the_rest_is_named_and_a_failed_test_counts_more(
    with_a_card, tmp_path: Path
) -> None:
    code, printed, steps, _ = with_a_card(
        wrong=[(f"{AUGMENT}::test_every_op[a]", "failed", "a byte")], HANG="benchmarks train", LIMIT="16"
    )
    assert code == 3 and "train is left out: exit code" in printed
    for step in ("counters", "inference", "compiled_peers"):
        assert f"{step} is left out: no time is left: run the same command again" in printed
    assert "inference" not in steps and json.loads((tmp_path / "out.json").read_text())["rows"]


def test_wheels_are_fetched_where_there_is_a_network_and_unpacked_where_there_is_none(
    with_a_card, tmp_path: Path
) -> None:
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(tmp_path / "python"), "CALLS": str(tmp_path / "calls")}
    environment |= {"FAIL": "no such words", "HANG": "no such words", "WRONG": "[]", "PARALLEL": "yes"}
    run = subprocess.run(
        ["bash", SCRIPT, "--wheels", tmp_path / "wheels"], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert call.startswith("-m pip download") and call.endswith("safetensors pytest pytest-xdist pytest-benchmark")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "pytest-9-py3-none-any.whl").touch()
    code, _, steps, calls = with_a_card(WHEELS=str(tmp_path / "wheels"))
    assert code == 0 and steps == STEPS
    assert calls[0] == f"-m zipfile -e {tmp_path}/wheels/pytest-9-py3-none-any.whl build/card-packages"


# What a machine with torch and triton need not have.
ABSENT = (
    "timm", "PIL", "tyro", "rich", "matplotlib", "simplejpeg", "sklearn", "skimage", "torchvision", "transformers",
    "pandas", "pyarrow", "kornia", "albumentations", "jinja2", "liger_kernel", "flash_attn", "xformers",
)  # fmt: skip
BARE = f"""
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {ABSENT} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""


def test_a_machine_with_torch_and_pytest_alone_proves_and_times_attention_and_the_loss(tmp_path: Path) -> None:
    """The script's first tests are chosen there, all files are imported, and what is compared agrees."""
    (tmp_path / "sitecustomize.py").write_text(BARE)
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{tmp_path}:{ROOT}:{ROOT / 'kernels'}"}
    tests = ["tests/kernels/attention/test_attention_on_a_card.py", "tests/kernels/distill_loss/test_loss_on_a_card.py"]

    def bare(*arguments: str) -> str:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    first = bare("--collect-only", "-m", "gpu and not slow", "-k", "198-64", tests[0])
    name = "test_error_is_at_most_twice_that_of_plain_pytorch"
    assert re.findall(rf"{name}(.*)", first) == [f"[198-64-torch.{dtype}]" for dtype in ("bfloat16", "float16")]
    agree = bare("-k", "providers_agree", "benchmarks/bench_attention.py", "benchmarks/bench_loss.py", *tests)
    assert re.search(r"[3-9] passed", agree), "the loss, and attention's math and flash at least"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_stops_at_once(tmp_path: Path) -> None:
    run = subprocess.run(
        ["bash", SCRIPT, tmp_path / "results.json"], env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1 and "no CUDA card" in run.stderr
    assert not list(tmp_path.iterdir())


def test_parts_become_one_file_and_the_ten_worst_ratios_are_printed(tmp_path: Path) -> None:
    for group, first in (("attention", 0.5), ("loss", 3.0)):
        content = measured(0, rows=8) | {"minutes": 1.2, "date": "2026-11-24"}
        for number, row in enumerate(content["rows"]):
            row["group"], row["extra_info"]["ratio_to_peer"] = group, first + number / 10
        (tmp_path / f"{group}.json").write_text(json.dumps(content))
    (tmp_path / "tune.json").write_text('{"rows": []}')
    out = tmp_path / "merged.results"
    command = [sys.executable, "-m", "benchmarks.card.results", str(tmp_path), "--out", str(out)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    merged = json.loads(out.read_text())
    assert len(merged["rows"]) == 16 and merged["minutes"] == 2.4 and merged["tuned"] == {"rows": []}
    assert merged["command"] == "benchmarks/run_gpu.sh"
    printed = run.stdout.splitlines()[3:]
    assert len(printed) == 10 and "0.50 × peer" in printed[0] and "3.10 × peer" in printed[-1]


def test_a_folder_without_parts_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.card.results", str(tmp_path), "--out", str(tmp_path / "out.json")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and f"{tmp_path} holds no results" in run.stderr


PREDICTED = {
    "attention_forward_resident n198 d64": {"predicted_us": 80.0},
    "attention_backward_resident n198 d64": {"predicted_us": 200.0},
}


def row(name: str, microseconds: float, unit: str = "calls/s") -> dict:
    info = {
        "ours": "ours",
        "unit": unit,
        "rate": {"ours": 1e6 / microseconds},
        "seconds": {"ours": [microseconds / 1e6]},
    }
    return {"group": "attention", "name": f"test_{name}", "extra_info": info}


def test_what_was_predicted_stands_beside_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rows = [
        row("attention[B256-N198-H6-bfloat16-forward]", 100.0),
        row("attention[B256-N198-H6-bfloat16-backward]", 180.0),
        row("attention[B256-N198-H12-bfloat16-both]", 840.0),
        row("attention[B1-N198-H6-bfloat16-forward]", 9.0),
        row("attention_compiled[B256-N198-H6-bfloat16-forward]", 101.0),
        row("student_only[small]", 40.0, unit="images/s"),
    ]
    (tmp_path / "parts").mkdir()
    content = {"machine": "A-Card", "minutes": 1.0, "rows": rows}
    (tmp_path / "parts" / "attention.json").write_text(json.dumps(content))
    targets = []
    monkeypatch.setattr(card_results, "predictions", lambda target: targets.append(target) or PREDICTED)
    monkeypatch.setattr(card_results, "card", lambda: {"compute_cap": "9.0"})
    out = tmp_path / "out.json"
    monkeypatch.setattr("sys.argv", ["card_results", str(tmp_path / "parts"), "--out", str(out)])
    card_results.main()
    merged = json.loads(out.read_text())
    assert targets == ["sm_90"]
    assert merged["predictions"] == {"target": "sm_90", "median of measured over predicted": 1.25}
    written = {entry["name"]: entry["extra_info"] for entry in merged["rows"]}
    forward = written["test_attention[B256-N198-H6-bfloat16-forward]"]
    assert (forward["predicted_us"], forward["measured_over_predicted"]) == (80.0, 1.25)
    both = written["test_attention[B256-N198-H12-bfloat16-both]"]
    assert (both["predicted_us"], both["measured_over_predicted"]) == (560.0, 1.5)
    assert sum("predicted_us" in info for info in written.values()) == 3
    printed = capsys.readouterr().out
    assert re.search(r"B256-N198-H6-bfloat16-backward\] +200\.0 +180\.0 +0\.90$", printed, flags=re.MULTILINE)
    assert "median of 3 rows: 1.25 times what is predicted for sm_90" in printed


def test_a_card_that_the_model_does_not_know_has_no_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    content = {"machine": "A-Card", "minutes": 1.0, "rows": [row("attention[B256-N198-H6-bfloat16-forward]", 100.0)]}
    (tmp_path / "attention.json").write_text(json.dumps(content))
    out = tmp_path / "out.results"
    for capability in ("7.5", "[N/A]"):
        monkeypatch.setattr(card_results, "card", lambda capability=capability: {"compute_cap": capability})
        monkeypatch.setattr("sys.argv", ["card_results", str(tmp_path), "--out", str(out)])
        card_results.main()
        merged = json.loads(out.read_text())
        assert "predictions" not in merged and "predicted_us" not in merged["rows"][0]["extra_info"]
        assert "predicted" not in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["card_results", str(tmp_path), "--out", str(out), "--target", "H100"])
    with pytest.raises(SystemExit):
        card_results.main()
    assert "--target is like sm_90, got H100" in capsys.readouterr().err
