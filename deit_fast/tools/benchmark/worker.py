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
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...data import EvalLoader, open_evaluation
from .forms import Form

BATCH = 32  # images at a time, for top-1


class First(NamedTuple):
    """The first call: the model is opened, compiled where that is its form, and answers for one image."""

    seconds: float
    megabytes: float  # that it brought the process's peak of memory to, over what the libraries had taken


class Broken(ValueError):
    """A form that cannot be run here."""


class Worker:
    """One form in its process.

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
        self.first = First(*self._receive())

    def run(self, batch: int, times: int) -> float:
        """Seconds of so many batches."""
        seconds = self._ask("run", batch, times)
        self.spent += seconds
        return seconds

    def top1(self, data: str) -> tuple[float, int]:
        """(per cent, images) of the validation images of a data set."""
        return self._ask("top1", data)

    def memory(self) -> float:
        """The peak of memory so far, over what the libraries had taken; MB."""
        return self._ask("memory")

    def close(self) -> None:
        with suppress(OSError):
            self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()

    def _ask(self, *question: Any) -> Any:
        with suppress(BrokenPipeError):
            self._connection.send(question)
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


def memory(field: str) -> float:
    """Of this process, MB: "VmRSS", what it has now, or "VmHWM", the most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def forget_peak() -> None:
    """Let VmHWM begin anew; where that is not allowed, it still holds what importing took."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _serve(form: Form, threads: int, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    if form.form in ("onnx", "int8"):
        import onnxruntime  # noqa: F401  # so that its import is not counted
    forget_peak()
    libraries = memory("VmRSS")
    generator, side = np.random.default_rng(0), form.preprocessing.image_size

    def random(batch: int) -> Any:
        return generator.standard_normal((batch, 3, side, side), np.float32)

    try:
        image, began = random(1), time.perf_counter()
        answer = form.open(threads)
        answer(image)
        connection.send((time.perf_counter() - began, memory("VmHWM") - libraries))
        images = {1: image}
        while True:
            try:
                what, *rest = connection.recv()
            except EOFError:
                return
            if what == "run":
                batch, times = rest
                images.setdefault(batch, random(batch))
                began = time.perf_counter()
                for _ in range(times):
                    answer(images[batch])
                connection.send(time.perf_counter() - began)
            elif what == "memory":
                connection.send(memory("VmHWM") - libraries)
            else:
                connection.send(_top1(form, answer, *rest))
    except BrokenPipeError:
        return
    except Exception as error:  # of torch's compiler, of onnxruntime, of the data
        connection.send(Broken(f"{type(error).__name__}: {error}".strip().splitlines()[0]))


def _top1(form: Form, answer: Any, data: str) -> tuple[float, int]:
    preprocessing, right, count = form.preprocessing, 0, 0
    dataset = open_evaluation(data, form.classes)
    turned = preprocessing.exif_orientation
    for batch in EvalLoader(dataset, preprocessing.policy, batch_size=BATCH, exif_orientation=turned):
        good = batch.labels >= 0
        images = np.zeros((BATCH, *batch.images.shape[1:]), np.float32)  # always as many: what is compiled, is for them
        images[: len(good)] = batch.images.numpy()
        found = answer(images)[: len(good)].argmax(1)
        right += int((found == batch.labels.numpy())[good.numpy()].sum())
        count += int(good.sum())
    return 100 * right / max(1, count), count
