"""The trainer: what a run leaves behind, that it is a function of its configuration, and that it can be continued."""

import dataclasses
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import deit_fast.data.training
from deit_fast import load
from deit_fast.config import Config
from deit_fast.data import EvalLoader, jpeg_part, open_dataset
from deit_fast.data.device import why_on_the_cpu
from deit_fast.run import checkpoint
from deit_fast.scores import evaluate
from deit_fast.tools.export.formats import export
from deit_fast.train import train
from deit_fast.train.__main__ import main
from deit_fast.weights.build import normalisation
from deit_kernels import _extension, augment
from tests.deit_fast.command import command_line
from tests.deit_fast.train.runs import assert_same_weights, losses, rows, weights
from tests.deit_fast.world import NO_RANK, commanded, world


def test_a_run_leaves_its_files_and_a_table(tiny: Config, capsys) -> None:
    summary = train(tiny)
    run = Path(tiny.run.out)
    assert Config.from_json(run / "config.json") == tiny
    data = json.loads((run / "data.json").read_text())
    assert (data["classes"], data["train"], data["val"]) == (["class0", "class1", "class2"], 24, 15)
    assert [row["step"] for row in rows(run) if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows(run) if "student" in row] == [3, 6]
    scores = json.loads((run / "summary.json").read_text())
    assert scores == summary.scores
    assert scores["student"].keys() == scores["ema"].keys() == {"cls", "dist", "fused", "softmax"}
    for head in (scores["teacher"], *scores["student"].values(), *scores["ema"].values()):
        assert head.keys() == {"top1", "top5", "loss", "n"} and head["n"] == 15 and head["top5"] == 100
    out = capsys.readouterr().out
    best = next((run / "checkpoints").glob("best_*.safetensors"))
    scored = [(row[kind]["fused"]["top1"], kind) for row in rows(run) if "ema" in row for kind in ("ema", "student")]
    top1, kind = max(scored, key=lambda one: one[0])
    which = {"ema": "moving average", "student": "weights"}[kind]
    assert f"best {which}: {best}, top-1 {top1:.1f} % after step {int(best.stem[-8:])}" in out
    for line in ("teacher", "student, class token", "student, distillation token", "student, fused, mean logits"):
        assert line in out
    assert not list(run.rglob("*.part*"))


def test_a_run_says_when_whole_jpeg_files_are_decoded(tiny: Config, monkeypatch, capsys) -> None:
    monkeypatch.setattr(jpeg_part, "missing", "")
    train(tiny)
    assert "JPEG files" not in capsys.readouterr().out
    monkeypatch.setattr(jpeg_part, "missing", "the binary is not built; to build it, type: …")
    train(tiny.replace(fresh=True))
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "JPEG files decoded whole, not only what the crops need (the binary is not built; to build it, type: …)" in out
    )


def test_a_run_says_when_a_gpus_batches_are_augmented_on_the_cpu(tiny: Config, monkeypatch, capsys) -> None:
    older = "_C_cuda.cu13.abi3.so is older than its Python code"
    monkeypatch.setattr(_extension, "cuda_missing", older)
    assert why_on_the_cpu(torch.device("cuda")) == older and why_on_the_cpu(torch.device("cpu")) is None
    monkeypatch.setattr("deit_fast.train.prepare.why_on_the_cpu", lambda device: why_on_the_cpu(torch.device("cuda")))
    train(tiny)
    assert f"augmenting on the CPU ({older})" in " ".join(capsys.readouterr().out.split())


def test_a_run_says_which_files_it_leaves_out(tiny: Config, tmp_path: Path, capsys) -> None:
    root = shutil.copytree(tiny.data.data, tmp_path / "images")
    train(tiny.replace(data=str(root)))
    assert "left out" not in capsys.readouterr().out
    for name in ("train/class0/a.heic", "train/class0/b.heic", "val/class1/notes.txt"):
        (root / name).touch()
    train(tiny.replace(data=str(root), fresh=True))
    said = " ".join(capsys.readouterr().out.split())
    assert "left out 2 .heic, 1 .txt (files that are not read: deit-fast data check names them)" in said


def test_equal_seeds_give_equal_weights_and_others_do_not(tiny: Config, tmp_path: Path) -> None:
    again, seed, data_seed = (
        tiny.replace(out=str(tmp_path / name), **change)
        for name, change in [("again", {}), ("seed", {"seed": 1}), ("data_seed", {"data_seed": 1})]
    )
    for config in (tiny, again, seed, data_seed):
        train(config)
    assert_same_weights(tiny.run.out, again.run.out)
    for other in (seed, data_seed):
        assert not torch.equal(weights(tiny.run.out)["head.weight"], weights(other.run.out)["head.weight"])


def killed_once_saved(rank: int, config: Config) -> int:
    """By a thread that looks every millisecond, so at no chosen place of a step."""

    def kill() -> None:
        while not (Path(config.run.out) / "checkpoints" / "newest").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    return main(command_line(config))


@pytest.mark.parametrize("save_every", [2, 3])
def test_a_killed_run_continues_bit_for_bit(tiny: Config, tmp_path: Path, save_every: int) -> None:
    whole = tiny.replace(epochs=20, eval_every=20, save_every=save_every, out=str(tmp_path / "whole"))
    killed = whole.replace(out=str(tmp_path / "killed"))
    train(whole)
    threads = str(torch.get_num_threads())  # bits depend on them, so they are those of runs in this process
    with world(1, tmp_path / "printed", killed_once_saved, killed, **NO_RANK, OMP_NUM_THREADS=threads) as running:
        assert running.wait() == [-signal.SIGKILL], running.printed(0)
    assert not (Path(killed.run.out) / "summary.json").exists(), "the run ended before it could be killed"
    train(killed)
    assert_same_weights(whole.run.out, killed.run.out)
    assert losses(killed.run.out) == losses(whole.run.out)  # and no line twice


def test_the_last_weights_are_saved_whatever_the_interval(tiny: Config) -> None:
    train(tiny.replace(save_every=4))
    assert checkpoint.newest(Path(tiny.run.out)).name == "step_00000006"


def test_a_run_killed_before_its_summary_has_one_in_the_end(finished: Config) -> None:
    summary = Path(finished.run.out) / "summary.json"
    scores = json.loads(summary.read_text())
    summary.unlink()
    assert train(finished).scores == scores == json.loads(summary.read_text())


def test_a_finished_run_prints_its_table_and_fresh_starts_anew(finished: Config, capsys) -> None:
    scores = json.loads((Path(finished.run.out) / "summary.json").read_text())
    pointer = Path(finished.run.out) / "checkpoints" / "newest"
    written = pointer.stat().st_mtime_ns
    assert main(command_line(finished)) == 0
    out = capsys.readouterr().out
    assert "is finished" in out and "best " in out
    assert pointer.stat().st_mtime_ns == written
    assert train(finished.replace(fresh=True)).scores == scores
    assert pointer.stat().st_mtime_ns > written


def test_another_configuration_in_the_folder_is_refused(finished: Config, capsys) -> None:
    assert main(command_line(finished.replace(lr=0.5, epochs=3))) == 2
    error = capsys.readouterr().err
    assert "--epochs 2 -> 3" in error and "--lr 0.02 -> 0.5" in error and "--fresh" in error
    assert train(finished.replace(log_every=2, threads=2)).scores  # neither changes a weight


def test_no_distillation_soft_distillation_and_the_class_token(tiny: Config, tmp_path: Path) -> None:
    plain = {"model": "deit_tiny_patch16_224", "distill_on": "class"}
    soft = {"distill": "soft", "alpha": 0.1, "tau": 3.0, "kl_normalizer": "batch"}
    for index, changes in enumerate([{**plain, "distill": "none", "teacher": ""}, plain, soft, {**soft, **plain}]):
        config = tiny.replace(out=str(tmp_path / str(index)), **changes)
        scores = train(config).scores
        assert scores["student"].keys() == ({"cls"} if "model" in changes else {"cls", "dist", "fused", "softmax"})
        assert (scores["teacher"] is None) == (config.distill.distill == "none")


def test_a_timm_classifier_is_trained_and_becomes_a_teacher(tiny: Config, tmp_path: Path) -> None:
    timm_sizes = {"patch_size": 0, "width": 0, "depth": 0, "heads": 0, "drop_path": 0.0}
    teacher = tiny.replace(
        model="test_efficientnet", distill="none", teacher="", out=str(tmp_path / "teacher"), **timm_sizes
    )
    top1 = train(teacher).scores["student"]["cls"]["top1"]
    average = json.loads((tmp_path / "teacher" / "summary.json").read_text())["ema"]["cls"]["top1"]
    student = tiny.replace(teacher=teacher.run.out)
    assert train(student).scores["teacher"]["top1"] == max(top1, average)


def test_a_table_says_at_which_crop_ratio_the_teacher_was_scored(tiny: Config, tmp_path: Path, capsys) -> None:
    """A teacher's own table has another number where the two runs crop differently."""
    plain = {"distill": "none", "teacher": "", "model": "deit_tiny_patch16_224"}
    teacher = tiny.replace(crop_ratio=0.5, out=str(tmp_path / "teacher"), **plain)
    own = train(teacher).scores
    assert "at 16 pixels, crop ratio 0.5, per cent" in capsys.readouterr().out
    student = tiny.replace(crop_ratio=1.0, teacher=teacher.run.out)
    scores = train(student).scores
    out = capsys.readouterr().out
    assert "at 16 pixels, crop ratio 1, per cent" in out
    assert "is scored at crop ratio 1  (its own is 0.5)" in out
    assert scores["teacher"]["loss"] not in [own[which]["cls"]["loss"] for which in ("student", "ema")]
    train(student)
    assert "at 16 pixels, crop ratio 1, per cent" in capsys.readouterr().out, "in the table of a finished run too"
    exported = tmp_path / "exported"
    export(load(teacher.run.out), "timm", exported)
    train(student.replace(teacher=str(exported), dry_run=True, fresh=True))
    assert "is scored at crop ratio 1  (its own is 0.5)" in capsys.readouterr().out


@pytest.mark.parametrize(("order", "repeats"), [("grouped", 3), ("official", 3), ("official", 1)])
def test_the_line_of_the_steps_multiplies_to_them(
    tiny: Config, tmp_path: Path, order: str, repeats: int, capsys
) -> None:
    """The official order shows a multiple of 256 images an epoch."""
    data = tmp_path / "data"
    shutil.copytree(tiny.data.data, data)
    for number in range(270):
        shutil.copy(data / "train/class0/0.png", data / f"train/class0/again{number}.png")
    config = tiny.replace(data=str(data), batch_size=32, repeats=repeats, order=order, dry_run=True)
    plan = train(config).scores["plan"]
    out = capsys.readouterr().out
    steps, epochs, shown, batch = map(int, re.search(r"steps +(\d+)  \((\d+) epochs? of (\d+) // (\d+)", out).groups())
    assert steps == epochs * (shown // batch) == plan["images"] // batch
    assert ("its order's rows of 294 images" in out) == (shown != 294) == ((order, repeats) == ("official", 3))


def rewind(run: str, step: int) -> None:
    """Make the run one that was killed after the checkpoint of `step`."""
    folder = Path(run)
    (folder / "summary.json").unlink()
    (folder / "checkpoints" / "newest").write_text(f"step_{step:08d}\n")


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("deit_tiny_distilled_patch16_224", {}),
        ("test_efficientnet", {"drop_path": 0.2}),  # batch norm, channels_last, timm's own drop-path
        ("test_vit", {"drop_path": 0.5, "image_size": 32}),
    ],
)
def test_continuing_is_exact_between_epochs_and_log_lines(
    tiny: Config, tmp_path: Path, model: str, changes: dict
) -> None:
    foreign = {"distill": "none", "teacher": "", "patch_size": 0, "width": 0, "depth": 0, "heads": 0}
    options = {"model": model, "log_every": 4, "save_every": 5, "epochs": 5, "eval_every": 5, "keep": 9, **changes}
    config = tiny.replace(**options, **({} if "deit" in model else foreign))
    train(config)
    whole = tmp_path / "whole"
    shutil.copytree(config.run.out, whole)
    rewind(config.run.out, step=5)
    torch.manual_seed(99)  # the generator's state is not part of a run
    train(config)
    assert_same_weights(whole, config.run.out)
    assert losses(config.run.out) == losses(whole)


def test_the_moving_average_is_the_one_defined(tiny: Config) -> None:
    train(tiny.replace(save_every=1, keep=9))
    steps = sorted((Path(tiny.run.out) / "checkpoints").glob("step_*"))
    assert len(steps) == 6
    before = load_file(steps[0] / "ema.safetensors")
    for step in steps[1:]:
        model, average = load_file(step / "model.safetensors"), load_file(step / "ema.safetensors")
        for name, value in average.items():
            torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * model[name])
        before = average


def test_the_seed_alone_decides_the_initialisation(tiny: Config, tmp_path: Path) -> None:
    other = tiny.replace(drop_path=0.0, seed=1, out=str(tmp_path / "other"))
    train(tiny.replace(drop_path=0.0))
    train(other)
    assert not torch.equal(weights(tiny.run.out)["head.weight"], weights(other.run.out)["head.weight"])


def test_the_loaders_get_the_models_normalisation_and_the_flags(tiny: Config, monkeypatch) -> None:
    policies = []
    for name in ("TrainLoader", "EvalLoader"):
        loader = getattr(deit_fast.data.training, name)

        def recorded(dataset, policy, *share, loader=loader, **options):
            policies.append(policy)
            return loader(dataset, policy, *share, **options)

        monkeypatch.setattr(deit_fast.data.training, name, recorded)
    half = (0.5, 0.5, 0.5)
    config = tiny.replace(
        model="test_resnet", distill="none", teacher="", patch_size=0, width=0, depth=0, heads=0,
        drop_path=0.0, flip=0.0, crop_scale=(0.5, 0.75), crop_ratio=0.5, rand_augment="rand-m7-inc1", erase=0.5,
        mixup=0.3, cutmix=0.7, mix_prob=0.9, mix_switch_prob=0.4,
    )  # fmt: skip
    train(config)
    evaluation, training = sorted(policies, key=lambda policy: policy.crop)
    assert evaluation == dataclasses.replace(augment.Policy.eval(16, 0.5), mean=half, std=half)
    expected = dataclasses.replace(
        augment.Policy.parse("rand-m7-inc1", 16), scale=(0.5, 0.75), flip=0.0, mean=half, std=half,
        erase=augment.Erase(0.5), mix=augment.Mix(0.3, 0.7, 0.9, 0.4),
    )  # fmt: skip
    assert training == expected


def test_other_data_than_the_run_began_with_is_refused(tiny: Config, tmp_path: Path) -> None:
    shutil.copytree(tiny.data.data, tmp_path / "data")
    config = tiny.replace(data=str(tmp_path / "data"), save_every=1, keep=9)
    train(config)
    rewind(config.run.out, step=2)
    for split in ("train", "val"):
        (tmp_path / "data" / split / "class0").rename(tmp_path / "data" / split / "zebra")
    with pytest.raises(ValueError, match="the data's classes changed since"):
        train(config)
    train(config.replace(fresh=True))


def test_a_file_of_class_weights_that_has_changed_is_refused(tiny: Config, tmp_path: Path, capsys) -> None:
    file = tmp_path / "weights.txt"
    file.write_text("class0 1\nclass1 2\nclass2 0.5\n")
    config = tiny.replace(class_weights=str(file), save_every=1, keep=9)
    train(config)
    assert "class weights 0.5 of class2 to 2 of class1  (--class-weights" in capsys.readouterr().out
    rewind(config.run.out, step=2)
    file.write_text('{"class2": 0.5, "class1": 2, "class0": 1.5}')
    with pytest.raises(ValueError, match="the data's class weights changed since"):
        train(config)
    file.write_text('{"class2": 0.5, "class1": 2, "class0": 1}')
    train(config)


def test_the_students_mistakes_are_found_before_its_teacher_is_trained(tiny: Config) -> None:
    wrong = tiny.replace(teacher="recipe:digits-teacher", model="deit_tiny_patch16_224")
    with pytest.raises(ValueError, match="has no distillation token"):
        train(wrong)
    assert not Path(f"{tiny.run.out}-teacher").exists()


def test_a_teacher_by_recipe_lies_beside_its_student_and_is_trained_once(tiny: Config, tmp_path: Path) -> None:
    config = tiny.replace(teacher="recipe:digits-teacher")
    train(config)
    teacher = Path(f"{tiny.run.out}-teacher")
    written = (teacher / "summary.json").stat().st_mtime_ns
    train(config.replace(fresh=True, lr=0.01))
    assert (teacher / "summary.json").stat().st_mtime_ns == written
    train(config.replace(fresh=True, data_seed=1))  # the old teacher is not its own
    assert (teacher / "summary.json").stat().st_mtime_ns > written
    shutil.rmtree(teacher)
    assert train(config.replace(data_seed=1)).scores["teacher"]  # a finished run needs no teacher
    assert not teacher.exists()


def test_batch_norm_among_two_ranks(tiny: Config, tmp_path: Path) -> None:
    timm_sizes = {"patch_size": 0, "width": 0, "depth": 0, "heads": 0, "drop_path": 0.0}
    config = tiny.replace(model="test_efficientnet", distill="none", teacher="", **timm_sizes)
    shutil.copytree(tiny.data.data, tmp_path / "data")
    bad = tmp_path / "data" / "val" / "class0" / "1.png"  # image 1 is in rank 1's share
    bad.write_bytes(b"no image")
    config = config.replace(data=str(tmp_path / "data"))
    with world(2, tmp_path / "printed", commanded, config) as running:
        codes = running.wait()
        out = running.printed(0) + running.printed(1)
    assert codes == [0, 0], out
    assert out.count(f"skipped an unreadable image: {bad}") == 1
    scores = json.loads((Path(config.run.out) / "summary.json").read_text())
    # The saved weights and statistics, alone, score what the two ranks counted together.
    dataset = open_dataset(config.data.data)[1]
    model = load(config.run.out).model
    mean, std = normalisation(model)
    policy = dataclasses.replace(augment.Policy.eval(16, config.data.crop_ratio), mean=mean, std=std)
    alone = evaluate(model, EvalLoader(dataset, policy, batch_size=15))
    best = max(("student", "ema"), key=lambda which: scores[which]["cls"]["top1"])
    assert alone["cls"]["n"] == scores[best]["cls"]["n"] == 14
    assert alone["cls"]["loss"] == pytest.approx(scores[best]["cls"]["loss"], rel=1e-5)


@pytest.mark.slow
def test_compiled(tiny: Config, tmp_path: Path) -> None:
    train(tiny)
    compiled = tiny.replace(compile="on", out=str(tmp_path / "compiled"))
    train(compiled)
    assert losses(compiled.run.out) == pytest.approx(losses(tiny.run.out), rel=1e-3)
