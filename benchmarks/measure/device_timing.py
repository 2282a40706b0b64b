"""The time of one call on the card alone; without a card, the processor time of one thread.

    seconds = time_calls({"ours": make_calls, "timm": make_timms_calls})
    record(benchmark, seconds, clock=CLOCK_NAME)

On a card `prepare` captures all the calls in one CUDA graph and times a replay with events, so neither Python nor the
launches count; give it at least 20 calls, whose inputs together exceed the L2 cache (`copies`). There the providers
come one after the other, because their inputs and graphs would not fit side by side, and ours comes before and after
them, half its rounds each: a card whose clock falls meanwhile shows in our spread. Without a card they take turns.

`arithmetic_limit` and `memory_limit` are what a call could take at best.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure.interleaved import Limit, Seconds, alternate

ON_CARD = torch.cuda.is_available()
CLOCK_NAME = "device time" if ON_CARD else "processor time"
DEVICE = torch.device("cuda" if ON_CARD else "cpu")

Call = Callable[[], object]


class Clock:
    """Seconds: the process's on the CPU; on a card only those that `add` was told, so that nothing else is counted."""

    def __init__(self) -> None:
        self._told = 0.0

    def __call__(self) -> float:
        return self._told if ON_CARD else time.process_time()

    def add(self, seconds: float) -> None:
        self._told += seconds


CLOCK = Clock()


def copies(bytes_of_a_call: int) -> int:
    """How many sets of inputs to make: 20 or more, until they are twice the L2; one without a card."""
    if not ON_CARD:
        return 1
    cache = torch.cuda.get_device_properties(DEVICE).L2_cache_size
    return max(20, -(-2 * cache // bytes_of_a_call))


@functools.cache
def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


@contextmanager
def on_stream() -> Iterator[None]:
    """Work on the stream that `prepare` captures on; nothing without a card.

    Autograd runs a backward on its forward's stream, and a graph cannot hold the work of another one.
    """
    if not ON_CARD:
        yield
        return
    _stream().wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(_stream()):
        yield
    torch.cuda.current_stream().wait_stream(_stream())


def prepare(calls: list[Call], capture: bool = True) -> tuple[Call, bool]:
    """A function that makes every call once and tells the clock the seconds of one; and whether a graph is replayed.

    Args:
        capture: False for code that waits for the device, which no graph can hold; its launches then count too.
    """
    if not ON_CARD:
        return calls[0], False
    with on_stream():
        for call in [*calls[:3], *calls]:  # compiles, then lets the allocator settle
            call()
    if capture:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=_stream()):
            for call in calls:
                call()
        replay = graph.replay
    else:

        def replay() -> None:
            for call in calls:
                call()

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run() -> None:
        start.record()
        replay()
        end.record()
        end.synchronize()
        CLOCK.add(start.elapsed_time(end) / 1e3 / len(calls))

    return run, capture


def time_calls(
    providers: Mapping[str, Callable[[], list[Call]]], rounds: int, waits: tuple[str, ...] = ()
) -> tuple[Seconds, dict[str, str]]:
    """Seconds of one call of each provider, and why others are left out: a provider that raises does not run here.

    Args:
        providers: make the calls; the first is ours, and has to run.
        waits: providers that wait for the device, which no graph can hold; their launches count too.
    """
    own, *others = providers
    runs: dict[str, Call] = {}
    seconds: Seconds = {name: [] for name in providers}
    left_out: dict[str, str] = {}
    for name in (own, *others, own) if ON_CARD else providers:
        calls = run = None  # what the provider before held is free
        try:
            with on_stream():
                calls = providers[name]()
                calls[0]()
            run, _ = prepare(calls, name not in waits)
        except (RuntimeError, NotImplementedError, ImportError) as error:
            if name == own:
                raise
            left_out[name] = str(error).splitlines()[0]
            continue
        if ON_CARD:
            half = rounds // 2 if not seconds[own] else rounds - rounds // 2
            count = half if name == own else rounds
            seconds[name] += alternate({name: run}, rounds=count, clock=CLOCK, warmup=2)[name]
            del calls, run
            torch.cuda.empty_cache()
        else:
            runs[name] = run
    if not ON_CARD:
        return alternate(runs, rounds=rounds, clock=CLOCK), left_out
    return {name: times for name, times in seconds.items() if times}, left_out


@functools.cache
def _arithmetic_rate() -> float:
    """Operations a second of one large product of matrices: float32 by one thread of the CPU, bfloat16 on a card."""
    side, dtype = (8192, torch.bfloat16) if ON_CARD else (1024, torch.float32)
    left, right = torch.randn(2, side, side, device=DEVICE, dtype=dtype)
    run, _ = prepare([lambda: left @ right] * 20)
    times = alternate({"product": run}, rounds=5, clock=CLOCK)["product"]
    return 2 * side**3 / min(times)


@functools.cache
def _copy_rate() -> float:
    """Bytes a second that one thread of the CPU reads and writes in a copy larger than its caches."""
    source, target = torch.ones(2, 1 << 26)
    times = alternate({"copy": lambda: target.copy_(source)}, rounds=5)["copy"]
    return 2 * 4 * len(source) / min(times)


def arithmetic_limit(operations: float) -> Limit:
    """Calls a second at the arithmetic of one large product of matrices, measured in the same process."""
    name = "a bfloat16 matrix product of 8192" if ON_CARD else "a float32 matrix product of 1024, one thread"
    return Limit(_arithmetic_rate() / operations, name)


def memory_limit(bytes_of_a_call: int) -> Limit:
    """Calls a second at the memory's rate: by clock and width of a card, of a copy on the CPU."""
    if rate := bytes_per_second():
        return Limit(rate / bytes_of_a_call, "each tensor moved once at the memory's peak rate")
    return Limit(_copy_rate() / bytes_of_a_call, "each tensor moved once at the rate of a copy, one thread")


def host_microseconds(call: Call, calls: int = 50) -> float:
    """What one call keeps the host busy, the device's work left running."""
    call()
    if ON_CARD:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls * 1e6


def kernels_launched(call: Call) -> int | None:
    """Kernels, copies and fills of one call, as the profiler sees them; None without a card."""
    if not ON_CARD:
        return None
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    return sum(event.count for event in trace.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA)


def bytes_per_second() -> float | None:
    """The memory's peak rate by its clock and width; None without a card."""
    if not ON_CARD:
        return None
    properties = torch.cuda.get_device_properties(DEVICE)
    return 2 * properties.memory_clock_rate * 1e3 * properties.memory_bus_width / 8  # two transfers a clock


def environment() -> dict[str, Any]:
    """What a number depends on and pytest-benchmark does not record."""
    card = torch.cuda.get_device_name(DEVICE) if ON_CARD else "no card: the CPU, at small sizes"
    return {"card": card, "torch": torch.__version__, "cuda": str(torch.version.cuda)}
