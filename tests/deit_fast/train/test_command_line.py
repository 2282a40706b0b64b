"""What a user can get wrong: each mistake is one sentence that says what to type, exit code 2, nothing left behind."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deit_fast import load
from deit_fast.config import Config
from deit_fast.files import read_json
from deit_fast.recipes.named import RECIPES, parse, recipe
from deit_fast.run.report import skipped_lines
from deit_fast.train import Diverged
from deit_fast.train.__main__ import main
from tests.deit_fast.command import command_line
from tests.deit_fast.world import commanded, world

ROOT = Path(__file__).parents[3]


def refused(config: Config | list[str], capsys: pytest.CaptureFixture) -> str:
    """The sentence on standard error of a command that is refused."""
    arguments = config if isinstance(config, list) else command_line(config)
    try:
        code = main(arguments)
    except SystemExit as exit:  # the parser's own way out
        code = exit.code
    captured = capsys.readouterr()
    assert code == 2, captured
    assert "Traceback" not in captured.err
    return captured.err + captured.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data", "/nowhere", "--teacher", "module:function"], "is neither a folder nor a built-in set"),
        (["--data", "digits", "--batch-size", "100000"], "type --batch-size 1442 or less"),
        (["--epochs", "-1"], "--epochs lies between 1 and"),
    ],
)
def test_what_is_quickly_seen_to_be_wrong_is_the_only_line(arguments, says, tmp_path: Path, capsys) -> None:
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and says in printed.err


def test_the_command_line_spells_every_field(tiny: Config) -> None:
    assert parse(command_line(tiny), "") == tiny


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "demo"),
        (["--data", "photos"], "demo"),
        (["--data", "digits"], "digits"),
        (["--data", "/imagenet"], "own"),
        (["--data=/imagenet", "--epochs", "3"], "own"),
        (["--recipe", "demo", "--data", "/flowers"], "demo"),
    ],
)
def test_the_recipe_follows_from_the_data(arguments: list[str], expected: str) -> None:
    config = parse(arguments, "")
    assert config.recipe == expected
    data = config.data.data
    assert data == ("photos" if arguments == [] else arguments[-1] if expected == "demo" else data)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_consistent(name: str) -> None:
    recipe(name).replace(data="somewhere").check()
    assert recipe(name).recipe == name


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": "/nowhere"}, "is neither a folder nor a built-in set"),
        ({"data": "photo"}, "did you mean photos?"),
        ({"model": "deit_tiny_distiled_patch16_224"}, "did you mean deit_tiny_distilled_patch16_224"),
        ({"teacher": "regnety_16"}, "did you mean"),
        ({"teacher": ""}, "--distill hard needs a teacher"),
        ({"distill": "none"}, "a teacher is given but --distill is none"),
        ({"distill": "soft"}, "--alpha 0.1 --tau 3 --kl-normalizer batch"),
        ({"model": "deit_tiny_patch16_224"}, "has no distillation token .* --distill-on class"),
        ({"distill_on": "class"}, "would never be trained .* --model deit_tiny_patch16_224"),
        ({"batch_size": 100}, "batch size 100 is larger than the 24 training images: type --batch-size 24 or less"),
        ({"warmup_epochs": 9.0}, "--warmup-epochs 9 leaves nothing of --epochs 2: try --warmup-epochs 0.2"),
        ({"image_size": 20}, "image_size 20 is not a multiple of patch_size 8: use 16"),
        ({"flip": 1.5}, "--flip lies between 0 and 1, got 1.5"),
        ({"crop_scale": (0.5, 0.2)}, "--crop-scale takes two shares"),
        ({"weights": "no_file.pth"}, "there is no file or folder no_file.pth for --weights: check the path"),
        ({"gpus": 64}, "--gpus 64"),
        ({"mixup": 0.001}, r"--mixup is 0 \(off\) or in \[0.01, 100\], got 0.001"),
        ({"mixup": 0.8, "batch_size": 9}, "mixing needs groups .* type --batch-size 8"),
        ({"alpha": 5.0}, "--alpha lies between 0 and 1, got 5"),
        ({"min_lr": float("nan")}, "--min-lr lies between"),
        ({"heads": -2}, "--heads lies between"),
        ({"tau": 3.0}, "--tau and --kl-normalizer belong to --distill soft"),
    ],
)
def test_a_wrong_flag(tiny: Config, capsys, changes: dict, says: str) -> None:
    config = tiny.replace(**changes)
    assert re.search(says, refused(config, capsys).replace("\n", " "))
    assert not Path(tiny.run.out).exists()


def test_an_unknown_recipe_or_flag(capsys) -> None:
    assert "did you mean --recipe demo" in refused(["--recipe", "deom"], capsys)
    assert "--batch-size" in refused(["--batch-sise", "3"], capsys)
    assert "recipe teacher needs data" in refused(["--recipe", "teacher"], capsys)


def test_other_classes_than_the_teachers(tiny: Config, tmp_path: Path, capsys) -> None:
    shutil.copytree(tiny.data.data, tmp_path / "two")
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / "two" / split / "class2")
    error = refused(tiny.replace(data=str(tmp_path / "two")), capsys)
    assert "knows 3 classes, the data has 2" in error and "--recipe teacher" in error


def test_a_class_only_in_val(tiny: Config, tmp_path: Path, capsys) -> None:
    shutil.copytree(tiny.data.data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "train" / "class1")
    assert "class1" in refused(tiny.replace(data=str(tmp_path / "data")), capsys)


def test_an_output_folder_that_is_not_ours(tiny: Config, tmp_path: Path, capsys) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "draft.txt").write_text("three years of work")
    for foreign in (False, True):
        if foreign:  # a downloaded model has one too
            (tmp_path / "thesis" / "config.json").write_text('{"model_type": "vit"}')
        for fresh in (False, True):
            config = tiny.replace(out=str(tmp_path / "thesis"), fresh=fresh)
            error = refused(config, capsys)
            assert "is not a run of deit_fast" in error or "is not a configuration of this version" in error
    assert (tmp_path / "thesis" / "draft.txt").read_text() == "three years of work"


def test_fresh_removes_an_old_run_after_all_checks_and_nothing_else(
    finished: Config, tmp_path: Path, monkeypatch
) -> None:
    run = Path(finished.run.out)
    (run / "notes.txt").write_text("mine")
    wrong = finished.replace(fresh=True, teacher="regnety_16")
    assert main(command_line(wrong)) == 2
    assert (run / "summary.json").exists()
    link = tmp_path / "link"
    link.symlink_to(run)
    monkeypatch.chdir(run)
    for out in (str(link), "."):
        assert main(command_line(finished.replace(fresh=True, epochs=1, warmup_epochs=0.1, out=out))) == 0
    assert (run / "notes.txt").read_text() == "mine"
    assert not (run / "checkpoints" / "step_00000006").exists() and link.is_symlink()


def test_an_output_folder_that_cannot_be_made(tiny: Config, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    said = refused(tiny.replace(out=str(tmp_path / "file" / "run")), capsys)
    assert f"cannot be written ({tmp_path / 'file'} is not a folder that you may write to): type another --out" in said


def test_a_checkpoint_that_is_not_ours(finished: Config, capsys) -> None:
    run = Path(finished.run.out)
    (run / "summary.json").unlink()
    for step in (run / "checkpoints").glob("step_*"):
        (step / "state.json").write_text('{"epoch": 3}')
    assert "holds no whole checkpoint of this version" in refused(finished, capsys)


def spoil(tiny: Config, tmp_path: Path, count: int) -> tuple[Config, list[Path]]:
    """A copy of the data with unreadable training images."""
    shutil.copytree(tiny.data.data, tmp_path / "data")
    spoiled = sorted((tmp_path / "data" / "train").rglob("*.png"))[:count]
    for path in spoiled:
        path.write_bytes(path.read_bytes()[:100])
    return tiny.replace(data=str(tmp_path / "data")), spoiled


def test_bad_images_are_named_and_skipped(tiny: Config, tmp_path: Path, capsys) -> None:
    config, spoiled = spoil(tiny, tmp_path, 2)
    (tmp_path / "data" / "val" / "class0" / "0.png").write_bytes(b"no image")
    assert main(command_line(config)) == 0
    captured = capsys.readouterr()
    out = captured.err + captured.out
    for path in [*spoiled, tmp_path / "data" / "val" / "class0" / "0.png"]:
        assert out.count(f"skipped an unreadable image: {path}") == 1
    skipped = sorted(map(str, [*spoiled, tmp_path / "data" / "val" / "class0" / "0.png"]))
    assert "".join(f"\n  {path}" for path in skipped) in out[out.index("3 unreadable images were skipped") :]
    assert read_json(Path(config.run.out) / "summary.json")["bad_images"] == skipped
    assert main(command_line(config)) == 0, "a summary with bad images is read like any other"
    assert load(config.run.out).summary["bad_images"] == skipped
    assert "top-1 on 14 validation images" in out


def test_images_skipped_before_a_restart_are_in_the_summary_too(tiny: Config, tmp_path: Path) -> None:
    config, spoiled = spoil(tiny, tmp_path, 2)
    assert main(command_line(config)) == 0
    summary = Path(config.run.out) / "summary.json"
    whole = summary.read_text()
    summary.unlink()
    assert main(command_line(config)) == 0, "nothing is left to train, so no image is met again"
    assert summary.read_text() == whole
    assert read_json(summary)["bad_images"] == sorted(map(str, spoiled))


def test_a_summary_of_sound_images_has_no_list_of_bad_ones(finished_run: Path) -> None:
    assert read_json(finished_run / "summary.json").keys() == {"teacher", "student", "ema"}


def test_ten_skipped_images_are_named_and_the_others_counted() -> None:
    assert skipped_lines(["a"]) == "1 unreadable image was skipped; summary.json lists all of them\n  a"
    lines = skipped_lines([f"image {number}" for number in range(13)]).splitlines()
    assert lines[0].startswith("13 unreadable images were skipped")
    assert lines[1:] == [*(f"  image {number}" for number in range(10)), "  and 3 more"]


def test_bad_images_end_the_run_when_asked(tiny: Config, tmp_path: Path, capsys) -> None:
    config, spoiled = spoil(tiny, tmp_path, 1)
    assert str(spoiled[0]) in refused(config.replace(bad_images="fail"), capsys)


def test_a_loss_that_is_no_number_stops_the_run(tiny: Config, capsys, tmp_path: Path) -> None:
    from deit_fast.train import train

    config = tiny.replace(lr=100.0, batch_size=24, warmup_epochs=0.0, epochs=200, eval_every=200)
    diverging = config.replace(distill="none", teacher="", model="deit_tiny_patch16_224", weight_decay=99.0)
    with pytest.raises(Diverged, match="try half of it, --lr 50"):
        train(diverging)
    assert main(command_line(diverging.replace(out=str(tmp_path / "again")))) == 3
    assert re.search(
        "error: (a weight|the loss or a gradient of .* steps in a row) is NaN or infinite", capsys.readouterr().err
    )


def test_an_interrupted_run_says_how_to_go_on(tiny: Config, capsys, monkeypatch) -> None:
    def interrupt(_config: Config) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deit_fast.train.__main__.train", interrupt)
    assert main(command_line(tiny)) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_several_gpus_become_several_processes(tiny: Config, monkeypatch) -> None:
    launched = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr("deit_fast.ranks.launch.launch", lambda *call: launched.append(call) or 0)
    monkeypatch.delenv("RANK", raising=False)
    assert main(command_line(tiny)) == main([*command_line(tiny), "--gpus", "4"]) == 0
    assert [call[1::2] for call in launched] == [(8, "deit_fast.train"), (4, "deit_fast.train")]


def test_the_launcher_starts_the_processes(tiny: Config, teachers: Path, monkeypatch) -> None:
    from deit_fast.ranks.launch import launch

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(teachers), *sys.path]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch(command_line(tiny), 2, Path(tiny.run.out) / "logs") == 0
    assert (Path(tiny.run.out) / "summary.json").exists()


@pytest.mark.parametrize(
    ("installed", "says"),
    [
        (False, "error: deit_fast is not installed here: run make setup, or pip install -e ./kernels -e '.[train]'\n"),
        (True, "error: deit_fast is installed in .venv: type .venv/bin/python, or source .venv/bin/activate first\n"),
    ],
)
def test_a_clone_without_an_install_says_what_to_do(tmp_path: Path, installed: bool, says: str) -> None:
    (tmp_path / "deit_fast").symlink_to(ROOT / "deit_fast")
    if installed:
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv" / "setup.stamp").touch()
    # -S: no site-packages, as with a Python in which nothing has been installed.
    command = [sys.executable, "-S", "-m", "deit_fast.train"]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, says)


def test_what_the_flags_make_pointless_gives_way() -> None:
    config = parse(["--data", "digits", "--distill", "none", "--epochs", "2"], "")
    assert (config.distill.teacher, config.optim.warmup_epochs) == ("", 0.2)


@pytest.mark.parametrize("recipe_name", RECIPES)
def test_every_recipe_has_help(recipe_name: str, capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--recipe", recipe_name, "--help"])
    assert exit.value.code == 0
    assert "--batch-size" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.json", "data.json", "summary.json"])
def test_a_damaged_file_of_the_run_is_named(finished: Config, capsys, name: str) -> None:
    if name == "data.json":
        (Path(finished.run.out) / "summary.json").unlink()
    (Path(finished.run.out) / name).write_text("{")
    assert name in refused(finished, capsys)


def test_a_line_that_was_cut_off_does_not_stop_a_run(finished: Config) -> None:
    run = Path(finished.run.out)
    whole = (run / "metrics.jsonl").read_text()
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").write_text(whole + '{"step": 6, "student": {"cls": {"top1": 3.0}')
    assert main(command_line(finished)) == 0
    assert (run / "metrics.jsonl").read_text() == whole


def test_a_mistake_among_several_processes_is_said_once_with_its_exit_code(
    tiny: Config, teachers, monkeypatch, capfd, tmp_path: Path
) -> None:
    from deit_fast.ranks.launch import launch

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(teachers), *sys.path]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch(command_line(tiny.replace(batch_size=9)), 2, Path(tiny.run.out) / "logs") == 2
    said = capfd.readouterr().err
    assert said.count("error: ") == 1 and "type --batch-size 8 or 10" in said and "Traceback" not in said
    with world(2, tmp_path / "printed", commanded, tiny.replace(data="/nowhere")) as running:
        assert running.wait() == [2, 2]
        said = running.printed(0) + running.printed(1)
    assert said.count("error: ") == 1 and "is neither a folder" in said and "Traceback" not in said


def test_the_console_script(capsys, monkeypatch, tiny: Config) -> None:
    from deit_fast.__main__ import main as script

    monkeypatch.setattr(sys, "argv", ["deit-fast", "trian"])
    assert script() == 2
    assert "train" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["deit-fast", "train", *command_line(tiny)])
    assert script() == 0
