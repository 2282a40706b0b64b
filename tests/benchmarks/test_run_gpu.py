"""run_gpu.sh as far as it can be shown without a card: it refuses, and parts become one file, the worst rows last."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from benchmarks import card_results
from benchmarks.__main__ import groups
from tests.benchmarks.results import measured

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/run_gpu.sh"
# In the order in which they run.
STEPS = [
    "first_tests", "first_rows", "attention_tests", "attention", "loss_tests", "loss", "build", "augmentation_tests",
    "train", "augment", "inference", "tune", "overhead", "resume", "loader", "compiled_peers",
]  # fmt: skip


def test_the_script_is_well_formed_and_names_files_that_exist() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    named = re.findall(r"tests/[\w/]+\.py", SCRIPT.read_text())
    assert len(named) == 3 and all((ROOT / name).exists() for name in named)
    measured = re.search(r"for limited in (.*); do", SCRIPT.read_text()).group(1)
    others = {part.partition(":")[0] for part in measured.split()}
    assert others | {"attention", "loss"} == {*groups(), "tune"} - {"ranks"}


# A python that has a card: it writes down what it is asked for, and fails or hangs where it is told to.
STUB = """#!/usr/bin/env bash
case "$*" in
    -) cat > /dev/null; echo A-Card abc1234 abc1234 "${PARALLEL:-yes}" ;;
    "-m benchmarks.card_results"*) exec {python} "$@" ;;
    *)
        echo "$*" >> "$CALLS"
        case "$*" in
            *"$FAIL"*) echo "SyntaxError: a broken file" >&2; exit 3 ;;
            *"$HANG"*) sleep 100 ;;
        esac
        for word in "$@"; do
            case $word in *.json) echo '{results}' > "$word" ;; esac
        done ;;
esac
exit 0
"""


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

    def run(results: str | Path = tmp_path / "out.json", **settings: str) -> Outcome:
        calls.write_text("")
        environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(stub), "CALLS": str(calls)}
        nobody = {"FAIL": "no such words", "HANG": "no such words"}
        command = ["bash", SCRIPT, results]
        environment |= nobody | settings
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        steps = re.findall(r"^\d\d:\d\d:\d\d (\w+)$", done.stdout, flags=re.MULTILINE)
        return Outcome(done.returncode, done.stdout, steps, calls.read_text().splitlines())

    return run


def test_deit_s_is_proven_and_timed_first_and_what_compiles_for_long_comes_last(with_a_card) -> None:
    code, _, steps, calls = with_a_card()
    assert code == 0 and steps == STEPS
    run = [call for call in calls if call.startswith(("-m", "setup.py"))]
    first_tests, first_rows, *_, last = run
    assert re.match(r"-m pytest .*-k 198-64 tests/kernels/attention/test_attention_on_a_card\.py$", first_tests)
    assert "-m benchmarks attention -k (B256-N198-H6 or agree) and not compiled and not flex --out " in first_rows
    assert "-m benchmarks attention -k compiled or flex --out " in last
    compiling = [call for call in run if call.startswith("-m benchmarks attention") and "not compiled" not in call]
    assert compiling == [last]
    proofs = [call for call in run if call.startswith("-m pytest")]
    assert ["-n 8" in call for call in proofs] == [False, True, True, True]
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


@pytest.mark.parametrize("file", ["-k 198-64", "test_loss_on_a_card.py"])
def test_a_wrong_result_stops_it_before_anything_that_is_wrong_is_measured(
    with_a_card, tmp_path: Path, file: str
) -> None:
    code, printed, steps, _ = with_a_card(FAIL=file)
    failed = "first_tests" if file == "-k 198-64" else "loss_tests"
    assert code == 3 and f"{failed} is left out" in printed
    assert steps == STEPS[: STEPS.index(failed) + 1]
    assert (tmp_path / "out.json").exists() == (failed == "loss_tests"), "what was proven and timed before is kept"


def test_tests_that_do_not_end_in_time_go_on_with_the_same_command(with_a_card) -> None:
    code, printed, steps, _ = with_a_card(HANG="-k 198-64", LIMIT="11")
    assert code == 1 and "first_tests is left out: exit code 124" in printed and steps == ["first_tests"]


def test_relative_paths_are_of_the_folder_where_it_is_typed(with_a_card, tmp_path: Path) -> None:
    code, printed, _, _ = with_a_card(results="out.json")
    assert code == 0 and (tmp_path / "out.json").exists() and f"results: {tmp_path / 'out.json'}" in printed


def test_a_step_that_hangs_ends_at_the_limit_and_the_rest_is_named(with_a_card, tmp_path: Path) -> None:
    code, printed, steps, _ = with_a_card(HANG="benchmarks loss", LIMIT="12")
    assert code == 1 and "loss is left out: exit code" in printed
    for step in ("augmentation_tests", "train", "compiled_peers"):
        assert f"{step} is left out: no time is left: run the same command again" in printed
    assert "train" not in steps and json.loads((tmp_path / "out.json").read_text())["rows"]


def test_wheels_are_fetched_where_there_is_a_network_and_unpacked_where_there_is_none(
    with_a_card, tmp_path: Path
) -> None:
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(tmp_path / "python"), "CALLS": str(tmp_path / "calls")}
    environment |= {"FAIL": "no such words", "HANG": "no such words"}
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
    assert re.findall(rf"{name}(.*)", first) == [
        f"[198-64-torch.{dtype}-{pairs}]" for dtype in ("bfloat16", "float16") for pairs in ("few", "many")
    ]
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
    command = [sys.executable, "-m", "benchmarks.card_results", str(tmp_path), "--out", str(out)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    merged = json.loads(out.read_text())
    assert len(merged["rows"]) == 16 and merged["minutes"] == 2.4 and merged["tuned"] == {"rows": []}
    assert merged["command"] == "benchmarks/run_gpu.sh"
    printed = run.stdout.splitlines()[3:]
    assert len(printed) == 10 and "0.50 × peer" in printed[0] and "3.10 × peer" in printed[-1]


def test_a_folder_without_parts_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.card_results", str(tmp_path), "--out", str(tmp_path / "out.json")]
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
