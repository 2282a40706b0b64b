"""An evaluation, from its settings to its results."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import timm.data
import torch
from numpy.typing import NDArray
from timm.data import ImageNetInfo
from tyro.conf import Positional, arg

from ...data import Dataset, EvalLoader, open_evaluation
from ...data.batch import OnBadImage, bad_image
from ...data.sources.folder import by_suffix, listing
from ...data.sources.imagenet import number_of
from ...files import check_writable, write_json
from ...progress import track
from ...ranks.group import Ranks, join
from ...run.provenance import provenance
from ...run.report import Reporter
from ...scores import TRUTH, Predictions, nested, predict
from ...teacher.load import load_teacher, recipe_config
from ...weights.exported import in_timms_order
from ..data.labels import classes_of_data, real_labels
from . import report as evaluation_report
from .models import EvaluatedModels, open_models

File = Annotated[str, arg(metavar="FILE")]
Name = Annotated[str, arg(metavar="NAME")]


@dataclass(frozen=True)
class Settings:
    """What is evaluated on what: the command line."""

    # What is evaluated
    models: Annotated[tuple[str, ...], Positional, arg(metavar="RUN_OR_FILE_OR_NAME")] = ()  # run folders, weights
    # files, exported folders, names of DeiTs or of timm, or module:function
    architecture: Name = ""  # timm's name of what weights fit (default: a DeiT)
    teacher: str = ""  # to compare with, as the trainer's --teacher; - for none (default: the one that the run learned
    # from)
    teacher_model: Name = "regnety_160"  # architecture of a --teacher that is a weights file (default: regnety_160,
    # the paper's)

    # On which images
    data: Annotated[tuple[str, ...], arg(metavar="FOLDER")] = ()  # folders, or built in: mnist5k, photos …
    # (default: what the run was trained on)
    real_labels: File = ""  # a real.json (default: timm's copy, where the images are ImageNet's validation images)
    image_size: int = 0  # side in pixels (default: the model's own)
    crop_ratio: Annotated[str, arg(metavar="RATIO")] = ""  # official (0.875), timm, or a number (default: the run's;
    # timm's for timm's models; else official)

    # The answer
    json: File = ""  # write every result there (default: no file)
    confusion: Annotated[str, arg(metavar="PNG")] = ""  # draw the confusion matrix there (default: no picture)

    # How
    batch_size: int = 64  # images of a process at a time (default: 64; less needs less memory)
    precision: Literal["fp32", "bf16"] = "fp32"  # of forward passes (default: fp32, as released)
    bad_images: OnBadImage = "skip"  # an unreadable image is named and left out, or ends the evaluation
    threads: int = 0  # that decode, in each process (default: one a core)


def evaluate_all(settings: Settings, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Open models and data, evaluate, print, write; the results hold the `arguments` as typed.

    Returns:
        What --json holds: the models, how images were prepared, and under "data" for each data set "scores", "real",
        "disagreement", "per_class", "confused" and "images_per_second".

    Raises:
        ValueError: a mistake in the command or the data, in one sentence; not one image is readable, or one is not
            and --bad-images is "fail".
    """
    with join({"data": " ".join(settings.data), "model": " ".join(settings.models)}) as ranks:
        reporter = Reporter(ranks.main)
        evaluated, sets = ranks.main_first(lambda: _open(settings))
        models = {}
        for name, module in evaluated.models.items():
            module.to(ranks.device)
            parameters = sum(weight.numel() for weight in module.parameters())
            reporter.decide(name, evaluated.sources[name], f"{parameters:,} parameters")
            models[name] = {"source": evaluated.sources[name], "parameters": parameters}
        reporter.decide("images", str(evaluated.preprocessing))
        reporter.decide("precision", settings.precision)
        results = {
            "models": models,
            **dataclasses.asdict(evaluated.preprocessing),
            "precision": settings.precision,
            "batch_size": settings.batch_size,
            "processes": ranks.world_size,
            "data": [],
            **provenance("deit-fast evaluate", arguments),
        }
        for dataset, real in sets:
            if dataset.left_out:
                why = f"of {dataset.name}: deit-fast data check names them"
                reporter.decide("left out", by_suffix(dataset.left_out), why)
            predictions, measured = _pass(settings, evaluated, dataset, ranks, reporter)
            result = {"name": dataset.name, **measured, **scored(predictions, dataset.classes, real)}
            results["data"].append(result)
            if ranks.main:
                evaluation_report.show(result, reporter.console)
                if settings.confusion:
                    target = Path(settings.confusion)
                    if len(sets) > 1:  # confusion-1.png, confusion-2.png
                        target = target.with_stem(f"{target.stem}-{len(results['data'])}")
                    of = result["confused"]["of"]
                    evaluation_report.draw(predictions.confused(of), dataset.classes, of, target)
                    reporter.say(f"confusion matrix: {target}")
        if ranks.main and settings.json:
            write_json(Path(settings.json), results)
            reporter.say(f"results: {settings.json}")
        ranks.wait()
    return results


def scored(predictions: Predictions, classes: Sequence[str], real: NDArray[np.int64] | None) -> dict[str, Any]:
    """All results of one data set as JSON values; `real` are reassessed labels as `real_labels` gives them."""
    names = list(predictions.top)
    result: dict[str, Any] = {"scores": nested({name: predictions.scores(name) for name in names})}
    if real is not None:
        result["real"] = nested({name: predictions.real_scores(name, real) for name in names})
    lines = [TRUTH, *sorted(names, key=lambda name: not name.startswith("teacher/"))]
    result["disagreement"] = {"names": lines, "share": predictions.disagreement(lines).tolist()}
    per_class = {name: predictions.per_class(name) for name in names}
    result["per_class"] = {
        "classes": list(classes),
        "n": [row["support"] for row in per_class[names[0]]],
        "top1": {name: [row["recall"] for row in rows] for name, rows in per_class.items()},
    }
    main = next((name for name in names if name.endswith("/fused")), names[0])
    confused = predictions.confused(main).items()
    pairs = [[classes[true], classes[taken], len(rows)] for (true, taken), rows in confused if true != taken]
    result["confused"] = {"of": main, "pairs": pairs[:20]}
    return result


def _open(settings: Settings) -> tuple[EvaluatedModels, list[tuple[Dataset, NDArray[np.int64] | None]]]:
    """The models, with the teacher, and the data sets with their reassessed labels."""
    if not settings.models:
        raise ValueError("nothing to evaluate: type a run folder, a weights file or a model's name")
    for flag, value in (("--batch-size", settings.batch_size), ("--threads", settings.threads or 1)):
        if value < 1:
            raise ValueError(f"{flag} {value}: type 1 or more")
    for target in filter(None, (settings.json, settings.confusion)):
        check_writable(Path(target), "type the path of a file in a folder that exists")
    if settings.confusion and Path(settings.confusion).suffix.lower() != ".png":
        raise ValueError(f"--confusion {settings.confusion}: the picture is a PNG, type {settings.confusion}.png")
    evaluated = open_models(settings.models, settings.architecture, settings.image_size, settings.crop_ratio)
    data = settings.data or ((evaluated.config.data.data,) if evaluated.config is not None else ())
    specs = [part for spec in data if spec for part in variants(spec)]
    if not specs:
        raise ValueError(f"{settings.models[0]} does not say what it was trained on: type --data FOLDER")
    classes = evaluated.classes or classes_of_data(specs[0], evaluated.count)
    if evaluated.timm_order and (ordered := in_timms_order(classes)) != classes:
        if len(settings.models) > 1:
            raise ValueError(
                f"one of {' '.join(settings.models)} was trained by timm, which sorts class folders by number and "
                f"without case, as others do not: evaluate them one by one"
            )
        classes = ordered
    sets = [open_evaluation(spec, classes) for spec in specs]
    real = [_real(dataset, settings.real_labels, evaluated.count) for dataset in sets]
    if settings.real_labels and not any(labels is not None for labels in real):
        raise ValueError(
            f"--real-labels {settings.real_labels} labels ImageNet's validation images, named "
            f"ILSVRC2012_val_00000001.JPEG and so on: --data {' '.join(specs)} has none of them"
        )
    spec, architecture = settings.teacher, settings.teacher_model
    if not spec and (run := evaluated.config) is not None and run.distill.teacher:  # what the run learned from
        first, architecture = recipe_config(run), run.distill.teacher_model
        spec = str(first.run_folder()) if first is not None else run.distill.teacher
    if spec not in ("", "-"):
        try:
            images = evaluated.preprocessing
            teacher = load_teacher(spec, architecture, images.image_size, classes, images.normalisation)
        except ValueError as error:
            hint = "" if settings.teacher else "; type --teacher - to evaluate without it"
            raise ValueError(f"{error}{hint}") from error
        if "teacher" in evaluated.models:
            raise ValueError(
                f"one of {' '.join(settings.models)} is called teacher, as is {spec}, from which {settings.models[0]} "
                f"learned: type --teacher - to leave that one out"
            )
        evaluated.models["teacher"], evaluated.sources["teacher"] = teacher, spec
    return evaluated, list(zip(sets, real, strict=True))


def variants(spec: str) -> list[str]:
    """The variants of ImageNet-V2 in a folder that holds them, else the spec itself."""
    root = Path(spec).expanduser()
    inside = [name for name in listing(root)[0] if name.startswith("imagenetv2-")] if root.is_dir() else []
    return [str(root / name) for name in inside] or [spec]


def _real(dataset: Dataset, file: str, count: int) -> NDArray[np.int64] | None:
    """Reassessed labels of ImageNet's validation images; None for other data."""
    if not number_of(dataset.path(0)):
        return None
    if not file:
        if dataset.classes != ImageNetInfo().label_names():
            return None
        file = str(Path(timm.data.__file__).with_name("_info") / "imagenet_real_labels.json")
    labels = real_labels(Path(file), [dataset.path(index) for index in range(len(dataset))])
    if labels.max(initial=-1) >= count:
        raise ValueError(f"{file} has the label {labels.max()}, the model knows {count} classes: these are not its own")
    return labels


def _pass(
    settings: Settings, evaluated: EvaluatedModels, dataset: Dataset, ranks: Ranks, reporter: Reporter
) -> tuple[Predictions, dict[str, Any]]:
    """One pass over the images, and how fast it was."""
    # Several ranks end together, after the pass: if one ended in the middle, the others would wait for it.
    alone = ranks.world_size == 1
    loader = EvalLoader(
        dataset, evaluated.preprocessing.policy, batch_size=settings.batch_size,
        threads=settings.threads or ranks.cores, rank=ranks.rank, world_size=ranks.world_size, device=ranks.device,
        bad_images=settings.bad_images if alone else "skip",
        exif_orientation=evaluated.preprocessing.exif_orientation,
    )  # fmt: skip
    bf16 = settings.precision == "bf16"
    autocast = torch.autocast(ranks.device.type, torch.bfloat16) if bf16 else nullcontext()
    batches = track(loader, dataset.name, len(loader), text="batches", console=reporter.console)
    ranks.wait()
    began = time.perf_counter()
    predictions = predict(evaluated.models, batches, ranks, autocast)
    seconds = time.perf_counter() - began
    reasons = {path: reason for bad in ranks.gather(loader.bad_images) for path, reason in bad.items()}
    unreadable = sorted(reasons)
    if unreadable and settings.bad_images == "fail":  # all ranks find it alike
        raise ValueError(bad_image(unreadable[0], reasons[unreadable[0]]))
    for path in unreadable:
        reporter.say(f"skipped an unreadable image: {path}")
    rate = (len(predictions) + len(unreadable)) / seconds
    measured = {"images": len(predictions), "unreadable": unreadable, "seconds": seconds, "images_per_second": rate}
    return predictions, measured
