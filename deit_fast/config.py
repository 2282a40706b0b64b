"""The configuration of a run: five groups of flags that are the command line, `config.json` and the run folder's name.

config = Config(data="/flowers", epochs=20)         # flat, as flags and config.json are
config.data.image_size, config.optim.epochs         # by group, as functions take it
config.replace(epochs=30)
"""

from __future__ import annotations

import functools
import hashlib
import json
import typing
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from deit_kernels.augment import Erase, Mix, Policy

from .model import IMAGENET_NORMALISATION, Channels, Normalisation
from .names import flag


@dataclass(frozen=True)
class Flag:
    """The meaning of a field; an alias below, such as Free, is one of them."""

    span: tuple[float, float] | None = None  # least and greatest value
    free: bool = False  # may change between two runs of one configuration: it moves no weight by more than rounding
    local: bool = False  # may differ between ranks: it changes neither the weights nor the order of collective calls
    shared: bool = False  # a teacher recipe takes it over from the student: the same data, seen in the same way
    label: int = 0  # place in the key of a cached label, from 1; 0: no label depends on it
    later: bool = False  # newer than the names of runs: at its default it is left out of a name, so old names stay
    once: bool = False  # belongs to one start of a run: neither compared with other runs nor typed to repeat it
    taught: bool = False  # a run with a teacher differs in it from one without, because of the teacher
    path: bool = False  # may be a path, of which a model card hides the folders above


def span(low: float, high: float) -> Flag:
    return Flag(span=(low, high))


def label(place: int) -> Flag:
    return Flag(label=place)


T = TypeVar("T")
Free = Annotated[T, Flag(free=True)]
Local = Annotated[T, Flag(free=True, local=True)]
Once = Annotated[T, Flag(free=True, once=True)]
Shared = Annotated[T, Flag(shared=True)]
Later = Annotated[T, Flag(later=True)]
Taught = Annotated[T, Flag(taught=True)]
Ref = Annotated[str, Flag(path=True)]
Fraction = Annotated[float, span(0, 1)]
BelowOne = Annotated[float, span(0, 0.999)]
Rate = Annotated[float, span(0, 100)]
UpTo1e5 = Annotated[int, span(0, 10**5)]
UpTo1e6 = Annotated[int, span(0, 10**6)]
Every = Annotated[int, span(1, 10**9)]
Seed = Annotated[int, span(0, 2**63 - 1)]
Order = Literal["grouped", "official"]
Precision = Literal["auto", "fp32", "bf16", "bf16-residual", "fp16"]
CompileMode = Literal["default", "max-autotune-no-cudagraphs"]
OFFICIAL_CROP_RATIO = 0.875  # of the official code, at 384 pixels too: int(256 / 224 · 384)


@dataclass(frozen=True)
class Part:
    """A group of flags: the base of the dataclasses that a configuration holds."""

    def check(self) -> None:
        """Refuse what can be seen to be wrong without touching data, model or GPU.

        Raises:
            ValueError: what was given, what is allowed, what to type instead.
        """
        for name, (low, high) in fields_where("span").items():
            value = getattr(self, name, None)  # of another part: None
            if value is not None and not low <= value <= high:  # NaN lies nowhere
                raise ValueError(f"{flag(name)} lies between {low} and {high}, got {value}")


@dataclass(frozen=True)
class DataConfig(Part):
    """Which images are trained and evaluated on, and what is done to them."""

    # Data
    data: Shared[Ref] = ""  # folder (train/, val/ of classes, tar shards, parquet, CIFAR), or mnist5k, photos, digits
    image_size: Annotated[Shared[int], span(1, 4096), label(6)] = 224  # side of training and evaluation crops, pixels
    crop_scale: Shared[tuple[float, float]] = (0.08, 1.0)  # random crop's share of the image's area, least and most
    simple_random_crop: Later[Shared[bool]] = False  # resize the shorter side, reflect 4 pixels, crop; no crop_scale
    flip: Shared[Fraction] = 0.5  # probability of a horizontal flip
    rand_augment: str = ""  # timm's string: rand-m9-mstd0.5-inc1, 3a (DeiT III), original (AutoAugment); empty: none
    color_jitter: Annotated[Later[float | None], span(0, 10)] = None  # of brightness, contrast, saturation; 3a: 0.3
    erase: Fraction = 0.0  # probability that a random box is filled with noise
    mixup: float = 0.0  # alpha of mixup's Beta distribution; 0: no mixup
    cutmix: float = 0.0  # alpha of CutMix's; 0: no CutMix; with both, each group of rows has one of them
    mix_prob: Fraction = 1.0  # probability that a group of rows is mixed at all
    mix_switch_prob: Fraction = 0.5  # probability of CutMix where both are on
    crop_ratio: Annotated[Shared[float], span(0.05, 1)] = 0.875  # evaluation: crop side / resized side; official: 0.875
    repeats: Annotated[int, span(1, 64), label(3)] = 1  # repeated augmentation: crops of one image in a batch
    order: Annotated[Shared[Order], label(4)] = "grouped"  # copies side by side, decoded once; or official index lists
    exif_orientation: Annotated[Shared[bool], label(5)] = False  # turn images as EXIF says; timm and torchvision do not
    in_memory: Local[Shared[bool]] = False  # decode the whole set once and keep the pixels: for small sets
    bad_images: Shared[Literal["skip", "fail"]] = "skip"  # an unreadable image is named and left out, or ends the run
    threads: Annotated[Local[Shared[int]], span(0, 1024)] = 0  # decoding threads of each process; 0: one a core

    def training_policy(self, normalisation: Normalisation) -> Policy:
        """Random crop, flip, and the stages that the configuration names.

        Raises:
            ValueError: --rand-augment is not a string of timm's that is known here.
        """
        mixes = self.mixup > 0 or self.cutmix > 0
        ops = Policy.parse(self.rand_augment) if self.rand_augment else Policy()
        return Policy(
            size=self.image_size,
            crop="simple" if self.simple_random_crop else "random_resized",
            scale=self.crop_scale,
            flip=self.flip,
            mean=normalisation[0],
            std=normalisation[1],
            rand_augment=ops.rand_augment,
            auto_augment=ops.auto_augment,
            color_jitter=ops.color_jitter if self.color_jitter is None else self.color_jitter,
            erase=Erase(self.erase) if self.erase else None,
            mix=Mix(self.mixup, self.cutmix, self.mix_prob, self.mix_switch_prob) if mixes else None,
        )

    def preprocessing(self, normalisation: Normalisation) -> Preprocessing:
        """What evaluation does to an image, in the run and wherever its model is used."""
        mean, std = normalisation
        return Preprocessing(
            self.image_size, self.crop_ratio, mean=mean, std=std, exif_orientation=self.exif_orientation
        )

    def check(self) -> None:
        super().check()
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"--crop-scale takes two shares, 0 < least <= most <= 1, got {self.crop_scale}")
        if self.simple_random_crop and self.crop_scale != DataConfig.crop_scale:
            given = " ".join(f"{share:g}" for share in self.crop_scale)
            raise ValueError(
                f"--crop-scale is {given}, but --simple-random-crop draws no share of the image: add --crop-scale 0.08 "
                "1, the default, or leave --simple-random-crop out"
            )
        if self.rand_augment:
            try:
                ops = Policy.parse(self.rand_augment)
            except ValueError as error:
                raise ValueError(f"--rand-augment: {error}") from error
            try:
                replace(ops, color_jitter=self.color_jitter or 0.0)
            except ValueError as error:
                raise ValueError(f"--color-jitter beside --rand-augment {self.rand_augment}: {error}") from error
        for name in ("mixup", "cutmix"):
            try:
                Mix(getattr(self, name) or 1.0, 1.0)
            except ValueError as error:
                raise ValueError(f"{flag(name)} is 0 (off) or in [0.01, 100], got {getattr(self, name)}") from error
        if not self.data:
            raise ValueError("no data: type --data FOLDER, or --data photos for the built-in photographs")


@dataclass(frozen=True)
class ModelConfig(Part):
    """Which model is trained, from which weights."""

    # Model
    model: Taught[str] = "deit_small_distilled_patch16_224"  # a name of DeiT or DeiT III (deit3_),
    # or any timm classifier
    weights: Ref = ""  # start from: "" random, "timm" its pretrained ones, a file, a run folder, module:function
    pos_embed_resize: Literal["official", "timm"] = "official"  # to another resolution; timm: antialiased
    patch_size: Annotated[int, span(0, 4096)] = 0  # change of the model's patch side, pixels; 0: as named
    width: UpTo1e5 = 0  # change of the model's channels; 0: as named
    depth: Annotated[int, span(0, 10**4)] = 0  # change of the model's number of blocks; 0: as named
    heads: Annotated[int, span(0, 10**4)] = 0  # change of the model's attention heads; 0: as named
    drop_path: BelowOne = 0.0  # stochastic depth of the last block; rises linearly from 0, in deit3_ the same in all
    dropout: BelowOne = 0.0  # after position embedding, projections, MLP layers; masks follow --micro-batch and ranks
    fusion: Literal["logits", "softmax", "cls", "dist"] = "logits"  # of two heads; paper: softmax
    train_mode: Literal["train", "eval"] = "train"  # eval: the official fine-tuning, on the fused logits

    def check(self) -> None:
        super().check()
        if self.train_mode == "eval" and (self.drop_path or self.dropout):
            raise ValueError(
                "--train-mode eval drops nothing: add --drop-path 0 --dropout 0, or type --train-mode train"
            )


@dataclass(frozen=True)
class DistillConfig(Part):
    """What is learnt from the labels, and what from a teacher."""

    # Distillation
    distill: Taught[Literal["none", "soft", "hard"]] = "none"  # learn nothing, the teacher's distribution, or its label
    distill_on: Taught[Literal["token", "class"]] = "token"  # which head learns from the teacher
    teacher: Taught[Ref] = ""  # timm name, weights file, run folder, module:function, or recipe:NAME to train one first
    teacher_model: Taught[str] = "regnety_160"  # architecture (timm name) when --teacher is a weights file
    teacher_cache: Free[str] = ""  # folder of the teacher's labels: those in it are used, the others written into it
    teacher_top_k: Taught[UpTo1e5] = 0  # soft: learn only the teacher's K most likely classes (as a cache keeps them);
    # 0: all
    teacher_precision: Taught[Literal["auto", "fp32", "bf16"]] = "auto"  # of its weights;
    # auto: bf16 on a GPU that has it
    teacher_layout: Free[Literal["auto", "nchw", "channels_last"]] = "auto"  # of its images; auto: measured on a GPU
    alpha: Annotated[Taught[float | None], span(0, 1)] = None  # teacher's loss weight; hard: 0.5 unless given;
    # soft: required
    tau: Annotated[Taught[float | None], span(1e-3, 1e3)] = None  # temperature of soft distillation
    kl_normalizer: Taught[Literal["batch", "numel"] | None] = None  # soft: over rows (paper) or rows x classes (code)
    label_smoothing: BelowOne = 0.1  # smoothing of the true labels
    class_weights: Later[Ref] = ""  # for rare classes: balanced, effective (arXiv 1901.05555), or a file that names all
    bce_loss: Later[bool] = False  # of the true labels, a binary cross-entropy for every class, averaged (DeiT III)
    bce_sum: Later[bool] = False  # binary cross-entropy: summed over the classes
    bce_target_thresh: Annotated[Later[float | None], span(0, 0.999)] = 0.0  # above it a target is 1; None: as it is

    def check(self) -> None:
        super().check()
        if self.bce_loss and self.label_smoothing and self.bce_target_thresh is not None:
            raise ValueError(
                "with --bce-loss a class is right where its target exceeds --bce-target-thresh, and --label-smoothing "
                "raises every target above it: type --label-smoothing 0, or --bce-target-thresh None"
            )
        if not self.bce_loss and (self.bce_sum or self.bce_target_thresh != 0):
            raise ValueError("--bce-sum and --bce-target-thresh belong to --bce-loss: leave them out, or type that")
        if self.distill == "none" and self.teacher:
            raise ValueError("a teacher is given but --distill is none: type --distill hard, or no --teacher")
        if self.distill != "none" and not self.teacher:
            raise ValueError(f"--distill {self.distill} needs a teacher: add --teacher NAME, or type --distill none")
        if self.distill == "none" and self.teacher_cache:
            raise ValueError("--teacher-cache is given but --distill is none: type --distill hard, or leave it out")
        if self.distill != "soft" and self.teacher_top_k:
            raise ValueError("--teacher-top-k belongs to --distill soft: leave it out, or type that")
        if self.distill == "soft" and self.teacher_cache and not self.teacher_top_k:
            raise ValueError(
                "a --teacher-cache of soft labels keeps the most likely classes, and training learns only those: add "
                "--teacher-top-k 10, or leave the cache out"
            )
        if self.distill != "soft" and (self.tau, self.kl_normalizer) != (None, None):
            raise ValueError("--tau and --kl-normalizer belong to --distill soft: leave them out, or type that")
        if self.distill == "soft" and None in (self.alpha, self.tau, self.kl_normalizer):
            raise ValueError(
                "--distill soft has no defaults, because the paper and the official code differ. Type one of:\n"
                "  --alpha 0.1 --tau 3 --kl-normalizer batch    the paper (arXiv 2012.12877, eq. 2)\n"
                "  --alpha 0.5 --tau 1 --kl-normalizer numel    the official code's defaults"
            )


@dataclass(frozen=True)
class OptimConfig(Part):
    """How the weights follow from the loss: steps, rates, precision, seeds."""

    # Optimisation
    epochs: Annotated[int, span(1, 10**6)] = 300  # passes; an epoch is (images // batch size) steps
    batch_size: Annotated[Shared[int], span(1, 10**6), label(2)] = 1024  # global batch: all processes together
    micro_batch: Free[Shared[UpTo1e6]] = 0  # most images a process takes at once, to save memory; 0: its whole share
    optimizer: Literal["adamw", "sgd", "lamb"] = "adamw"  # sgd: Nesterov momentum 0.9; lamb: as Apex, clips at norm 1
    lr: Rate = 5e-4  # peak learning rate for a batch of 512; scaled by batch size / 512
    unscale_lr: Later[bool] = False  # --lr is the peak itself, whatever the batch
    layer_decay: Annotated[Later[float], span(0.01, 1)] = 1.0  # learning rate of a block / that of the one after it
    warmup_epochs: Annotated[float, span(0, 10**6)] = 5.0  # linear warm-up
    warmup_lr: Rate = 1e-6  # learning rate of the first step, not scaled
    min_lr: Rate = 1e-5  # learning rate at the end of the cosine, not scaled
    schedule: Literal["step", "official"] = "step"  # official: once an epoch, and one epoch late
    weight_decay: Rate = 0.05  # of matrices and of the distillation token
    decay_dist_token: bool = True  # the official code decays it, today's timm does not
    ema_decay: Annotated[float, span(0, 0.9999999)] = 0.99996  # moving average of the weights; 0: none
    precision: Shared[Precision] = "auto"  # auto: bf16 on a GPU or a CPU with AMX; -residual: sums between blocks too
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile of the model; auto: on a GPU
    compile_mode: Free[CompileMode] = "default"  # torch.compile's mode; the other tries more kernels: minutes longer
    seed: Seed = 0  # initialisation and stochastic depth
    data_seed: Annotated[Shared[Seed], label(1)] = 0  # order and augmentation

    def check(self) -> None:
        super().check()
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"--warmup-epochs {self.warmup_epochs:g} leaves nothing of --epochs {self.epochs}: "
                f"try --warmup-epochs {self.epochs / 10:g}"
            )


@dataclass(frozen=True)
class RunConfig(Part):
    """Where a run lies, and when it logs, evaluates and saves."""

    # Run
    out: Once[str] = ""  # run folder; empty: runs/<recipe>-<model>-<hash of the configuration>
    fresh: Once[bool] = False  # discard what the run folder holds and start anew
    dry_run: Once[bool] = False  # set everything up, take a few steps, print the plan of the run; nothing is written
    gpus: Annotated[Local[Shared[int]], span(0, 1024)] = 0  # processes, one a GPU; 0: every visible GPU
    profile: Once[bool] = False  # trace steps 10 to 19, and say where their time goes, in the run folder's profile/
    log_every: Free[Every] = 20  # steps between lines of metrics.jsonl
    report: Once[bool] = True  # write report.html at the end: curves, mistakes, suspects, time; at most five minutes
    eval_every: Free[Every] = 1  # epochs between evaluations; the last epoch is always evaluated
    skip_limit: Free[Every] = 20  # steps in a row with a NaN or infinite loss or gradient, after which the run ends
    save_every: Annotated[Free[int], span(0, 10**9)] = 0  # steps between checkpoints; 0: an epoch
    keep: Annotated[Free[int], span(1, 10**6)] = 2  # checkpoints kept, the newest ones


PARTS: dict[str, type[Part]] = {
    "data": DataConfig, "model": ModelConfig, "distill": DistillConfig, "optim": OptimConfig, "run": RunConfig,
}  # fmt: skip


@dataclass(frozen=True)
class Flags:
    """The command line in its groups."""

    # Recipe
    recipe: Taught[str]  # named defaults, see deit_fast/recipes/; without it: own, or what fits built-in --data
    data: DataConfig
    model: ModelConfig
    distill: DistillConfig
    optim: OptimConfig
    run: RunConfig

    def flat(self) -> dict[str, Any]:
        """Every flag's value by its field, in the order of config.json."""
        parts = (vars(getattr(self, part)).items() for part in PARTS)
        return {"recipe": self.recipe, **{name: value for part in parts for name, value in part}}


class Config(Flags):
    """What is trained on what, and how. Made of flat fields, of which each is a flag; a recipe sets their defaults."""

    def __init__(self, recipe: str = "deit", **fields: Any) -> None:
        parts: dict[str, Any] = {
            part: kind(**{name: fields.pop(name) for name in kind.__dataclass_fields__ if name in fields})
            for part, kind in PARTS.items()
        }
        if fields:
            raise TypeError(f"Config has no field {next(iter(fields))!r}")
        super().__init__(recipe, **parts)

    def replace(self, **fields: Any) -> Config:
        return Config(**self.flat() | fields)

    def deciding(self) -> dict[str, Any]:
        """The fields that decide the weights, as JSON values."""
        fields = json.loads(json.dumps(self.flat()))
        for name in ("data", "teacher"):  # the same folder, however it was typed
            fields[name] = fields[name].rstrip("/") or fields[name]
        return {name: value for name, value in fields.items() if name not in fields_where("free")}

    def agreed(self) -> dict[str, Any]:
        """The fields that all ranks must have alike."""
        return {name: value for name, value in self.flat().items() if name not in fields_where("local")}

    def identity(self) -> dict[str, Any]:
        """The same, which names a run: a later version's fields only where they change something."""
        later, default = fields_where("later"), Config().flat()
        return {name: value for name, value in self.deciding().items() if name not in later or value != default[name]}

    def run_folder(self) -> Path:
        """`out`, or a name under runs/ that a different configuration never shares."""
        if self.run.out:
            return Path(self.run.out)
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]
        return Path("runs") / f"{self.recipe}-{self.model.model.replace('/', '_')}-{digest}"

    @staticmethod
    def from_json(path: Path) -> Config:
        """Read back a run folder's `config.json`.

        Raises:
            ValueError: not a configuration of this version.
        """
        try:
            fields = json.loads(path.read_text())
            return Config(**{**fields, "crop_scale": tuple(fields["crop_scale"])})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is not a configuration of this version of deit_fast ({error})") from error

    def check(self) -> None:
        """Every part's check, and of what two of them say together; raises ValueError."""
        for part in PARTS:
            getattr(self, part).check()
        if self.model.train_mode == "eval" and self.distill.distill != "none":
            raise ValueError(
                "--train-mode eval gives one fused prediction, from which nothing can be distilled (the official "
                "code raises NotImplementedError): type --train-mode train, or --distill none"
            )


@functools.cache
def fields_where(meaning: str) -> dict[str, Any]:
    """Field -> value, in the order of the values, of all fields that have this attribute of Flag."""
    types: dict[str, Any] = {}
    for kind in (Flags, *PARTS.values()):
        types |= typing.get_type_hints(kind, include_extras=True)
    marks = [(name, mark) for name, hint in types.items() for mark in getattr(hint, "__metadata__", ())]
    found = {name: value for name, mark in marks if (value := getattr(mark, meaning))}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, old value, new value) of all that differ; nested mappings by their names, joined by a dot."""
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from changes(before, after, f"{prefix}{name}.")
        elif before != after:
            yield f"{prefix}{name}", before, after


def difference(old: Config, new: Config) -> list[str]:
    """The flags in which two configurations would train different weights, as "--name old -> new"."""
    return [f"{flag(name)} {was!r} -> {now!r}" for name, was, now in changes(old.deciding(), new.deciding())]


def command_line(config: Config, default: Config, without: Container[str] = ()) -> list[str]:
    """The flags that make `config` of `default`, as typed; those of one start, and `without`, are left out."""
    typed = []
    for name, _, value in changes(default.flat(), config.flat()):
        if name == "recipe" or name in fields_where("once") or name in without:
            continue
        if isinstance(value, bool):
            typed.append(flag(name if value else f"no_{name}"))
        else:
            typed += [flag(name), *map(str, value if isinstance(value, tuple) else (value,))]
    return typed


@dataclass(frozen=True)
class Preprocessing:
    """What evaluation does to an image file: the one object from the run to everything that uses its model.

    The shorter side is resized, the central square kept and normalised. All fields are JSON values.

    Args:
        image_size: side of the square, pixels.
        crop_ratio: the square's side / the shorter side after resizing.
        interpolation: of the resizing, which is Pillow's, antialiased.
        mean, std: of red, green and blue, for pixels in [0, 1].
        exif_orientation: the image is first turned as its EXIF orientation says.

    Raises:
        ValueError: a number outside its range.
    """

    image_size: int = 224
    crop_ratio: float = OFFICIAL_CROP_RATIO
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: Channels = IMAGENET_NORMALISATION[0]
    std: Channels = IMAGENET_NORMALISATION[1]
    exif_orientation: bool = False

    def __post_init__(self) -> None:
        _ = self.policy  # which checks the numbers

    def __str__(self) -> str:
        turned = ", turned as their EXIF orientation says" if self.exif_orientation else ""
        return f"{self.image_size} pixels, crop ratio {self.crop_ratio:g}, {self.interpolation}{turned}"

    @functools.cached_property
    def policy(self) -> Policy:
        """What follows the decoding, as the augmentation op takes it."""
        policy = Policy.eval(self.image_size, self.crop_ratio)
        return replace(policy, interpolation=self.interpolation, mean=self.mean, std=self.std)

    @property
    def resized(self) -> int:
        """The shorter side after resizing, pixels."""
        return int(self.image_size / self.crop_ratio)

    @property
    def normalisation(self) -> Normalisation:
        return self.mean, self.std
