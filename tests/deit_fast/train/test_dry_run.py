"""--dry-run: the plan of a run, and nothing on the disk."""

import re
from pathlib import Path

import pytest

from deit_fast.config import Config
from deit_fast.train import dry_run, train
from deit_fast.train.__main__ import main
from deit_fast.train.dry_run import limited_by, lines
from deit_fast.train.meter import Clock
from tests.deit_fast.command import command_line
from tests.deit_fast.world import world

GIB = 2**30
PLAN = dict(
    step_alone=8000, data_alone=16000, together=7200, images=1280000 * 300, processes=8, teacher_share=0.3,
    memory=40 * GIB, memory_limit=80 * GIB, disk=2 * GIB, disk_free=100 * GIB, on_gpu=True, cores=12, read_share=0.1,
    decode_share=0.8,
)  # fmt: skip


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fewest steps that make a measurement."""
    monkeypatch.setattr(dry_run, "_SECONDS", 0.0)


def planned(rank: int, config: Config) -> int:
    dry_run._SECONDS = 0.0
    return main(command_line(config))


def test_the_plan_of_a_run_and_no_file(tiny: Config, tmp_path: Path, brief, capsys) -> None:
    before = files(tmp_path)
    assert main([*command_line(tiny), "--dry-run"]) == 0
    assert files(tmp_path) == before
    out = capsys.readouterr().out
    for what, value in [
        ("memory", r"[\d.]+ GiB of [\d.]+ GiB"), ("disk", r"[\d.]+ GiB of [\d.]+ GiB free"),
        ("data", r"[\d,]+ images/s alone"), ("step", r"[\d,]+ images/s alone  \(the teacher takes \d+% of it\)"),
        ("together", r"[\d,]+ images/s"), ("time", r"[\d.]+ minutes, an estimate  \(48 images / \(1 x [\d,]+ images/s"),
        ("limit", r".+  \(.+\)"),
    ]:  # fmt: skip
        assert re.search(rf"^  {what} +{value}", out, flags=re.MULTILINE), (what, out)


def test_the_teachers_share_is_that_of_the_step_alone(tiny: Config, brief, monkeypatch) -> None:
    """Not of step and data together, where slow data would hide a slow teacher."""

    def speed(body, batches, steps: int, *_: object, warm_up: int = 0, **__: object) -> float:
        for _batch in range(warm_up + steps):
            body(next(batches))
        return 100.0

    monkeypatch.setattr(dry_run, "measured_speed", speed)
    monkeypatch.setattr(Clock, "seconds", lambda self: dict.fromkeys(self._seconds, 0.1))
    plan = train(tiny.replace(dry_run=True)).scores["plan"]
    assert plan["teacher_share"] == pytest.approx(0.1 * 100 / (2 * tiny.optim.batch_size))


def test_a_run_that_has_begun_is_not_touched(tiny: Config, tmp_path: Path, brief) -> None:
    assert main(command_line(tiny)) == 0
    (Path(tiny.run.out) / "summary.json").unlink()
    before = files(tmp_path)
    assert main([*command_line(tiny), "--dry-run"]) == 0
    assert files(tmp_path) == before


def test_a_teacher_by_recipe_is_not_trained(tiny: Config, tmp_path: Path, brief, capsys) -> None:
    config = tiny.replace(teacher="recipe:digits-teacher")
    assert main([*command_line(config), "--dry-run"]) == 0
    assert not Path(tiny.run.out).exists() and not Path(f"{tiny.run.out}-teacher").exists()
    assert "the teacher of the recipe digits-teacher stays untrained" in capsys.readouterr().out


def test_a_label_cache_is_not_begun(tiny: Config, tmp_path: Path, brief) -> None:
    config = tiny.replace(teacher_cache=str(tmp_path / "labels"))
    assert main([*command_line(config), "--dry-run"]) == 0
    assert not (tmp_path / "labels").exists()


def test_a_label_cache_is_read_and_left_as_it_is(tiny: Config, tmp_path: Path, brief) -> None:
    config = tiny.replace(teacher_cache=str(tmp_path / "labels"))
    assert main(command_line(config)) == 0
    next((tmp_path / "labels").glob("*.safetensors")).unlink()  # so the teacher is asked
    before = files(tmp_path)
    assert main([*command_line(config), "--fresh", "--dry-run"]) == 0
    assert files(tmp_path) == before
    (tmp_path / "labels" / "settings.json").write_text("{}")
    assert main([*command_line(config), "--fresh", "--dry-run"]) == 2


def test_several_ranks_measure_together(tiny: Config, tmp_path: Path) -> None:
    config = tiny.replace(dry_run=True)
    with world(2, tmp_path / "printed", planned, config) as running:
        assert running.wait() == [0, 0], running.printed(0)
        assert "48 images / (2 x " in running.printed(0)
        assert running.printed(1) == ""
    assert not Path(tiny.run.out).exists()


def test_fine_tuning_in_evaluation_mode_is_measured_so(tiny: Config, tmp_path: Path) -> None:
    """In training mode a distillation head would get no gradient, for which DDP waits."""
    changes = {"train_mode": "eval", "distill": "none", "teacher": "", "drop_path": 0.0, "dry_run": True}
    config = tiny.replace(**changes)
    with world(2, tmp_path / "printed", planned, config) as running:
        assert running.wait() == [0, 0], running.printed(0)


def test_hours_are_images_over_what_all_gpus_do() -> None:
    found = {what: (value, reason) for what, value, reason in lines(PLAN)}
    assert found["time"] == ("14.8 hours, an estimate", "384,000,000 images / (8 x 900 images/s), without evaluations")
    assert found["memory"] == ("40.00 GiB of 80.00 GiB", "the fullest GPU; 40.00 GiB left")
    assert "TOO LITTLE SPACE" not in found["disk"][1]


def test_too_little_space_is_said() -> None:
    disk = lines({**PLAN, "disk": 200 * GIB})[1]
    assert ("disk", "200.00 GiB of 100.00 GiB free") == disk[:2]
    assert "TOO LITTLE SPACE, type another --out or a smaller --keep" in disk[2]


@pytest.mark.parametrize(
    ("changes", "limit", "advice"),
    [
        ({}, "the step", "add GPUs"),
        ({"teacher_share": 0.6}, "the step, mostly its teacher", "smaller teacher"),
        ({"data_alone": 5000}, "decoding images", "deit-fast data pack"),
        ({"data_alone": 5000, "read_share": 0.7}, "reading files", "local disk"),
        ({"data_alone": 5000, "decode_share": 0.2}, "augmenting images", "CUDA extension"),
        ({"on_gpu": False, "together": 4000}, "12 cores, which data and step share", "use a GPU"),
    ],
)
def test_what_will_be_the_limit(changes: dict, limit: str, advice: str) -> None:
    found = limited_by({**PLAN, **changes})
    assert found[0] == limit and advice in found[1]
