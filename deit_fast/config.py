"""The configuration of a run: one dataclass that is the command line, `config.json` and the run folder's name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from deit_kernels.augment import Erase, Mix, Policy, RandAugment

from .model import Normalisation

# What may change between two runs of one configuration: nothing here changes a weight by more than rounding.
NOT_IDENTITY = (
    "out", "fresh", "gpus", "threads", "in_memory", "log_every", "eval_every", "save_every", "keep", "micro_batch",
    "teacher_cache", "teacher_layout", "profile", "skip_limit", "dry_run",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What is trained on what, and how. Every field is a flag; a recipe sets its defaults."""

    # Recipe
    recipe: str = "deit"  # named defaults, see deit_fast/recipes/; without it: deit, or what fits built-in --data

    # Data
    data: str = ""  # folder (train/ and val/ with classes, tar shards, parquet, CIFAR), or built in: photos, digits
    image_size: int = 224  # side of the training and evaluation crop, pixels
    crop_scale: tuple[float, float] = (0.08, 1.0)  # area of the random crop as a share of the image, least and most
    flip: float = 0.5  # probability of a horizontal flip
    rand_augment: str = ""  # timm's string, such as rand-m9-mstd0.5-inc1; empty: none
    erase: float = 0.0  # probability that a random box is filled with noise
    mixup: float = 0.0  # alpha of mixup's Beta distribution; 0: no mixup
    cutmix: float = 0.0  # alpha of CutMix's; 0: no CutMix; with both, each group of rows has one of them
    mix_prob: float = 1.0  # probability that a group of rows is mixed at all
    mix_switch_prob: float = 0.5  # probability of CutMix where both are on
    crop_ratio: float = 0.875  # evaluation: crop side over resized side; the official code has 0.875
    repeats: int = 1  # repeated augmentation: crops of one image in a batch
    order: Literal["grouped", "official"] = "grouped"  # copies side by side, decoded once; or the official index lists
    exif_orientation: bool = False  # turn images as their EXIF block says; timm and torchvision do not
    in_memory: bool = False  # decode the whole set once and keep the pixels: for small sets
    bad_images: Literal["skip", "fail"] = "skip"  # an unreadable image is named and left out, or ends the run
    threads: int = 0  # decoding threads of each process; 0: as many as it has cores

    # Model
    model: str = "deit_small_distilled_patch16_224"  # one of the eight DeiT names, or any timm classifier
    weights: str = ""  # start from: "" random, "timm" its pretrained ones, a file, a run folder, module:function
    pos_embed_resize: Literal["official", "timm"] = "official"  # to another resolution; timm: antialiased
    patch_size: int = 0  # change of the model's patch side, pixels; 0: as named
    width: int = 0  # change of the model's channels; 0: as named
    depth: int = 0  # change of the model's number of blocks; 0: as named
    heads: int = 0  # change of the model's attention heads; 0: as named
    drop_path: float = 0.0  # stochastic depth of the last block; rises linearly from 0
    dropout: float = 0.0  # after position embedding, projections and MLP layers; masks follow --micro-batch and ranks
    fusion: Literal["logits", "softmax", "cls", "dist"] = "logits"  # of two heads; paper: softmax
    train_mode: Literal["train", "eval"] = "train"  # eval: the official fine-tuning, on the fused logits

    # Distillation
    distill: Literal["none", "soft", "hard"] = "none"  # learn nothing, the teacher's distribution, or its label
    distill_on: Literal["token", "class"] = "token"  # which head learns from the teacher
    teacher: str = ""  # timm name, weights file, run folder, module:function, or recipe:NAME to train one first
    teacher_model: str = "regnety_160"  # architecture (timm name) when --teacher is a weights file
    teacher_cache: str = ""  # folder of the teacher's labels: those in it are used, the others written into it
    teacher_top_k: int = 0  # soft: learn only the teacher's K most likely classes (as a cache keeps them); 0: all
    teacher_precision: Literal["auto", "fp32", "bf16"] = "auto"  # of its weights; auto: bf16 on a GPU that has it
    teacher_layout: Literal["auto", "nchw", "channels_last"] = "auto"  # of its images; auto: measured on a GPU
    alpha: float | None = None  # weight of the teacher's term; hard: 0.5 unless given, soft: must be given
    tau: float | None = None  # temperature of soft distillation
    kl_normalizer: Literal["batch", "numel"] | None = None  # soft: over rows (paper) or rows x classes (code)
    label_smoothing: float = 0.1  # smoothing of the true labels

    # Optimisation
    epochs: int = 300  # passes; an epoch is (images // batch size) steps
    batch_size: int = 1024  # global batch: all processes together
    micro_batch: int = 0  # most images a process takes at once, when memory is short; 0: all of its share
    optimizer: Literal["adamw", "sgd"] = "adamw"  # sgd: with Nesterov momentum 0.9
    lr: float = 5e-4  # peak learning rate for a batch of 512; scaled by batch size / 512
    warmup_epochs: float = 5.0  # linear warm-up
    warmup_lr: float = 1e-6  # learning rate of the first step, not scaled
    min_lr: float = 1e-5  # learning rate at the end of the cosine, not scaled
    schedule: Literal["step", "official"] = "step"  # official: once an epoch, and one epoch late
    weight_decay: float = 0.05  # of matrices and of the distillation token
    decay_dist_token: bool = True  # the official code decays it, today's timm does not
    ema_decay: float = 0.99996  # moving average of the weights; 0: none
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 autocast on a GPU that has it, else fp32
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile of the model; auto: on a GPU
    seed: int = 0  # initialisation and stochastic depth
    data_seed: int = 0  # order and augmentation

    # Run
    out: str = ""  # run folder; empty: runs/<recipe>-<model>-<hash of the configuration>
    fresh: bool = False  # discard what the run folder holds and start anew
    dry_run: bool = False  # set everything up, take a few steps, print the plan of the run; nothing is written
    gpus: int = 0  # processes, one a GPU; 0: every visible GPU
    profile: bool = False  # trace steps 10 to 19, and say where their time goes, in the run folder's profile/
    log_every: int = 20  # steps between lines of metrics.jsonl
    eval_every: int = 1  # epochs between evaluations; the last epoch is always evaluated
    skip_limit: int = 20  # steps in a row whose loss or gradient is no number, after which the run ends
    save_every: int = 0  # steps between checkpoints; 0: an epoch
    keep: int = 2  # checkpoints kept, the newest ones

    def identity(self) -> dict[str, object]:
        """The fields that decide the weights, as JSON values."""
        fields = json.loads(json.dumps(dataclasses.asdict(self)))
        for name in ("data", "teacher"):  # the same folder, however it was typed
            fields[name] = fields[name].rstrip("/") or fields[name]
        return {name: value for name, value in fields.items() if name not in NOT_IDENTITY}

    def run_folder(self) -> Path:
        """`out`, or a name under runs/ that a different configuration never shares."""
        if self.out:
            return Path(self.out)
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]
        return Path("runs") / f"{self.recipe}-{self.model.replace('/', '_')}-{digest}"

    def training_policy(self, normalisation: Normalisation) -> Policy:
        """Random resized crop, flip, and the stages that the configuration names.

        Raises:
            ValueError: --rand-augment is not a string of timm's that is known here.
        """
        mixes = self.mixup > 0 or self.cutmix > 0
        return Policy(
            size=self.image_size,
            scale=self.crop_scale,
            flip=self.flip,
            mean=normalisation[0],
            std=normalisation[1],
            rand_augment=RandAugment.parse(self.rand_augment) if self.rand_augment else None,
            erase=Erase(self.erase) if self.erase else None,
            mix=Mix(self.mixup, self.cutmix, self.mix_prob, self.mix_switch_prob) if mixes else None,
        )

    def evaluation_policy(self, normalisation: Normalisation) -> Policy:
        """The shorter side resized, then the central crop."""
        mean, std = normalisation
        return replace(Policy.eval(self.image_size, self.crop_ratio), mean=mean, std=std)

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
        """Refuse what can be seen to be wrong without touching data, model or GPU.

        Raises:
            ValueError: what was given, what is allowed, what to type instead.
        """
        ranges = [
            ("image_size", 1, 4096), ("repeats", 1, 64), ("threads", 0, 1024), ("epochs", 1, 10**6),
            ("batch_size", 1, 10**6), ("micro_batch", 0, 10**6), ("teacher_top_k", 0, 10**5), ("gpus", 0, 1024),
            ("log_every", 1, 10**9), ("eval_every", 1, 10**9),
            ("save_every", 0, 10**9), ("keep", 1, 10**6), ("skip_limit", 1, 10**9),
            ("lr", 0, 100), ("warmup_epochs", 0, 10**6),
            ("warmup_lr", 0, 100), ("min_lr", 0, 100), ("alpha", 0, 1), ("tau", 1e-3, 1e3), ("patch_size", 0, 4096),
            ("width", 0, 10**5), ("depth", 0, 10**4), ("heads", 0, 10**4),
            ("weight_decay", 0, 100), ("flip", 0, 1), ("erase", 0, 1), ("crop_ratio", 0.05, 1),
            ("mix_prob", 0, 1), ("mix_switch_prob", 0, 1),
            ("label_smoothing", 0, 0.999),
            ("drop_path", 0, 0.999), ("dropout", 0, 0.999),
            ("ema_decay", 0, 0.9999999), ("seed", 0, 2**63 - 1), ("data_seed", 0, 2**63 - 1),
        ]  # fmt: skip
        for name, low, high in ranges:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # NaN lies nowhere
                raise ValueError(f"{flag(name)} lies between {low} and {high}, got {value}")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"--crop-scale takes two shares, 0 < least <= most <= 1, got {self.crop_scale}")
        if self.rand_augment:
            try:
                RandAugment.parse(self.rand_augment)
            except ValueError as error:
                raise ValueError(f"--rand-augment: {error}") from error
        for name in ("mixup", "cutmix"):
            try:
                Mix(getattr(self, name) or 1.0, 1.0)
            except ValueError as error:
                raise ValueError(f"{flag(name)} is 0 (off) or in [0.01, 100], got {getattr(self, name)}") from error
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"--warmup-epochs {self.warmup_epochs:g} leaves nothing of --epochs {self.epochs}: "
                f"try --warmup-epochs {self.epochs / 10:g}"
            )
        if self.train_mode == "eval":
            if self.drop_path or self.dropout:
                raise ValueError(
                    "--train-mode eval drops nothing: add --drop-path 0 --dropout 0, or type --train-mode train"
                )
            if self.distill != "none":
                raise ValueError(
                    "--train-mode eval gives one fused prediction, from which nothing can be distilled (the official "
                    "code raises NotImplementedError): type --train-mode train, or --distill none"
                )
        if not self.data:
            raise ValueError("no data: type --data FOLDER, or --data photos for the built-in photographs")
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


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return "--" + name.replace("_", "-")


def difference(old: Config, new: Config) -> list[str]:
    """The flags in which two configurations would train different weights, as "--name old -> new"."""
    before, after = old.identity(), new.identity()
    return [f"{flag(name)} {before[name]!r} -> {after[name]!r}" for name in after if before[name] != after[name]]
