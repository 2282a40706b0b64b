"""A process for each form, so that memory and first calls are its own; the forms take turns.

with workers(forms, threads=2) as (running, broken):
    running["runs/flowers eager"].first         # First(seconds, megabytes)
    running["runs/flowers eager"].run(32, 5)    # seconds of five batches of 32
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ...data import EvalLoader, open_evaluation
from ...scores import evaluate
from .forms import ONNX_FORMS, Form

BATCH = 32  # images at a time, for top-1


class First(NamedTuple):
    """The first call: the model is opened, compiled where that is its form, and answers for one image."""

    seconds: float
    megabytes: float  # that it brought the process's peak of memory to, over what the libraries had taken


class Broken(ValueError):
    """A form that cannot be run here."""


class Opened:
    """One form, opened in this process; its first call is made.

    Attributes:
        first: what the first call took.
    """

    def __init__(self, form: Form, threads: int) -> None:
        if form.form in ONNX_FORMS:
            import_module("onnxruntime")  # so that its import is not counted
        self._form, self._generator = form, np.random.default_rng(0)
        _forget_peak()
        self._libraries = _megabytes("VmRSS")
        self._images = {1: self._random(1)}
        began = time.perf_counter()
        self._model = form.open(threads)
        with torch.inference_mode():
            self._model(self._images[1])
        self.first = First(time.perf_counter() - began, self.memory())

    def run(self, batch: int, times: int) -> float:
        """Seconds of so many batches."""
        images = self._images.setdefault(batch, self._random(batch))
        began = time.perf_counter()
        with torch.inference_mode():
            for _ in range(times):
                self._model(images)
        return time.perf_counter() - began

    def memory(self) -> float:
        """The peak of memory so far, over what the libraries had taken; MB."""
        return _megabytes("VmHWM") - self._libraries

    def top1(self, data: str) -> tuple[float, int]:
        """(per cent, images) of the validation images of a data set."""
        preprocessing = self._form.preprocessing
        dataset, turned = open_evaluation(data, self._form.classes), preprocessing.exif_orientation
        loader = EvalLoader(dataset, preprocessing.policy, batch_size=BATCH, exif_orientation=turned)
        score = evaluate(_Padded(self._model), loader)["cls"]
        return score["top1"], int(score["n"])

    def _random(self, batch: int) -> torch.Tensor:
        side = self._form.preprocessing.image_size
        return torch.from_numpy(self._generator.standard_normal((batch, 3, side, side), np.float32))


class _Padded(nn.Module):
    """A model that always sees BATCH images, for which it may be compiled."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @torch.inference_mode()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        none = images.new_zeros(BATCH - len(images), *images.shape[1:])
        return self.model(torch.cat([images, none]))[: len(images)]


class Worker:
    """`Opened` in a process of its own.

    Attributes:
        spent: seconds of all its calls of `run` so far.
        first: what the first call took.
    """

    def __init__(self, form: Form, threads: int) -> None:
        self.form, self.spent = form, 0.0
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(form, threads, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.first: First = self._receive()

    def run(self, batch: int, times: int) -> float:
        seconds = self.ask("run", batch, times)
        self.spent += seconds
        return seconds

    def close(self) -> None:
        with suppress(OSError):
            self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of `Opened` returns there."""
        with suppress(BrokenPipeError):
            self._connection.send((method, *arguments))
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(5)
            raise Broken(f"its process ended with {self._process.exitcode}; it may need more memory") from error
        if isinstance(answer, Broken):
            raise answer
        return answer


@contextmanager
def workers(forms: Sequence[Form], threads: int) -> Iterator[tuple[dict[str, Worker], dict[str, str]]]:
    """(those that run by their names, why the others do not)."""
    running: dict[str, Worker] = {}
    broken: dict[str, str] = {}
    try:
        for form in forms:
            try:
                running[form.name] = Worker(form, threads)
            except Broken as error:
                broken[form.name] = str(error)
        yield running, broken
    finally:
        for worker in running.values():
            worker.close()


def _serve(form: Form, threads: int, connection: Connection) -> None:
    """Answer every (method of `Opened`, arguments) until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    try:
        opened = Opened(form, threads)
        connection.send(opened.first)
        while True:
            method, *arguments = connection.recv()
            connection.send(getattr(opened, method)(*arguments))
    except (BrokenPipeError, EOFError):
        return
    except Exception as error:  # of torch's compiler, of onnxruntime, of the data
        connection.send(Broken(f"{type(error).__name__}: {error}".strip().splitlines()[0]))


def _megabytes(field: str) -> float:
    """Of this process: "VmRSS", what it has now, or "VmHWM", the most since `_forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def _forget_peak() -> None:
    """Let VmHWM begin anew; where that is not allowed, it still holds what importing took."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
