"""What the gate measures on: a CUDA device, this machine's processor, or one that is simulated.

A device times one call, waits, and says how much memory a call took; it takes its functions from
torch before a candidate is imported, and never sets a clock, a limit or a mode.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

FLUSH = 256 << 20  # bytes, or four times the cache where that is more
GIB = 1 << 30
# what nvidia-smi is asked for
STATE = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_event_reasons.active")


class Timing(NamedTuple):
    """seconds: of the call, on the device.  aside: seconds for which the device was busy, by the
    host's clock, beside what the events saw: work outside the timed stream, or latency.
    """

    seconds: float
    aside: float


@dataclass(frozen=True)
class Probe:
    """A call that shows what the device can do at most: `amount` bytes or FLOPs."""

    call: Callable[[], Any]
    amount: float


class Device(Protocol):
    """name: for people.  place: where inputs are made.  gpu: whether kernels are launched on it,
    so that a candidate must launch its own and torch.compile is worth trying.
    """

    name: str
    place: torch.device
    gpu: bool

    def time(self, call: Callable[[], Any], *, bare: bool = False) -> tuple[Any, Timing]:
        """Call once, caches flushed. bare: only when the device has come to rest after the flush,
        which then hides no launch, and no work on another stream either.
        """

    def wait(self) -> None:
        """Until all work is done, whatever stream it is on."""

    def peak(self, call: Callable[[], Any]) -> tuple[Any, int]:
        """Call once; the bytes by which memory in use grew at most."""

    def now(self) -> float:
        """Seconds on the host's clock."""

    def probes(self, size: int) -> dict[str, Probe]:
        """ "copy", which moves `size` bytes, "read", which moves half of them, and "matmul"."""

    def state(self) -> dict[str, str]:
        """Clocks, temperature, power and what slows the device down; read, never set."""

    def machine(self) -> dict[str, str]:
        """Names and versions of what the measurement depends on."""


class Cuda:
    """The current CUDA device. Raises RuntimeError where there is none."""

    gpu = True

    def __init__(self) -> None:
        cuda = torch.cuda
        self.place = torch.device("cuda", cuda.current_device())
        self.properties = cuda.get_device_properties(self.place)
        self.name = self.properties.name
        self.stream = cuda.current_stream()
        self.now, self.wait = time.perf_counter, cuda.synchronize
        self._record, self._elapsed = cuda.Event.record, cuda.Event.elapsed_time
        self._current_stream = cuda.current_stream
        self._events = [cuda.Event(enable_timing=True) for _ in range(3)]  # type: ignore[no-untyped-call]
        words = max(FLUSH, 4 * getattr(self.properties, "L2_cache_size", 0)) // 4
        self._dirty = torch.empty(words, device=self.place)
        self._clean = torch.rand(words, device=self.place)
        self._sink = torch.empty((), device=self.place)

    def time(self, call: Callable[[], Any], *, bare: bool = False) -> tuple[Any, Timing]:
        origin, start, end = self._events
        self.wait()
        before = self.now()
        self._record(origin, self.stream)
        # a write throws out what the cache holds, and a read what the write left dirty in it, which
        # the call would pay for; meanwhile the host is already launching the call
        self._dirty.fill_(before)
        torch.sum(self._clean, dim=0, out=self._sink)
        if bare:
            self.wait()
            before = self.now()
            self._record(origin, self.stream)
        self._record(start, self.stream)
        out = call()
        self._record(end, self.stream)
        self.wait()
        host = self.now() - before
        if self._current_stream() != self.stream:
            raise RuntimeError("the call leaves another stream the current one")
        return out, Timing(
            self._elapsed(start, end) * 1e-3, host - self._elapsed(origin, end) * 1e-3
        )

    def peak(self, call: Callable[[], Any]) -> tuple[Any, int]:
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = call()
        self.wait()
        return out, torch.cuda.max_memory_allocated() - before

    def probes(self, size: int) -> dict[str, Probe]:
        words = size // 8
        # random values: a product of zeros is faster than the machine
        source = torch.rand(words, device=self.place)
        copied = torch.empty_like(source)
        brain = torch.cuda.is_bf16_supported(including_emulation=False)
        n, dtype = 8192, torch.bfloat16 if brain else torch.float16
        a, b = (torch.randn(n, n, device=self.place, dtype=dtype) for _ in range(2))
        product = torch.empty_like(a)
        return {
            "copy": Probe(lambda: copied.copy_(source), 8 * words),
            "read": Probe(lambda: torch.sum(source, dim=0, out=self._sink), 4 * words),
            "matmul": Probe(lambda: torch.mm(a, b, out=product), 2 * n**3),
        }

    def state(self) -> dict[str, str]:
        return dict(zip(STATE, self._ask(*STATE), strict=False))

    def machine(self) -> dict[str, str]:
        driver = self._ask("driver_version")
        return {
            "gpu": self.name,
            "memory": f"{self.properties.total_memory / GIB:.0f} GiB",
            "multiprocessors": str(self.properties.multi_processor_count),
            "driver": driver[0] if driver else "unknown",
            "cuda": str(torch.version.cuda),
            **versions(),
        }

    def _ask(self, *fields: str) -> list[str]:
        uuid = str(getattr(self.properties, "uuid", ""))
        which = ["-i", uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"] if uuid else []
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", *which]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return []
        return [part.strip() for part in done.stdout.strip().split(",")]


class Processor:
    """This machine's own processor, by the host's clock: no GPU, but everything else is real."""

    name = "processor"
    place = torch.device("cpu")
    gpu = False
    now = staticmethod(time.perf_counter)

    def time(self, call: Callable[[], Any], *, bare: bool = False) -> tuple[Any, Timing]:
        before = self.now()
        out = call()
        return out, Timing(self.now() - before, 0.0)

    def wait(self) -> None:
        """Nothing is left to wait for when a call has returned."""

    def peak(self, call: Callable[[], Any]) -> tuple[Any, int]:
        return call(), 0

    def probes(self, size: int) -> dict[str, Probe]:
        source = torch.rand(size // 8)
        copied = torch.empty_like(source)
        a, b = torch.randn(2, 128, 128)
        return {
            "copy": Probe(lambda: copied.copy_(source), size),
            "read": Probe(lambda: source.sum(), size // 2),
            "matmul": Probe(lambda: a @ b, 2 * 128**3),
        }

    def state(self) -> dict[str, str]:
        return {}

    def machine(self) -> dict[str, str]:
        return {"gpu": self.name, **versions()}


class Simulated:
    """A device on which a call takes as long as it says: `device.work(seconds)`.

    noise, drift, outliers: of the clock, relative.  flush: seconds in which work on another stream
    stays unseen unless the call is timed bare.
    """

    name = "simulated"
    place = torch.device("cpu")
    gpu = False

    def __init__(
        self,
        seed: int = 0,
        *,
        noise: float = 0.005,
        drift: float = 0.05,
        outliers: float = 0.03,
        flush: float = 1e-4,
    ):
        self.chance = np.random.default_rng(seed)
        self.noise, self.drift, self.outliers, self.flush = noise, drift, outliers, flush
        self.seconds, self._timed, self._aside = 0.0, 0.0, 0.0

    def work(self, seconds: float, *, aside: bool = False) -> None:
        """What a call does to take time, on the timed stream or aside of it."""
        if aside:
            self._aside += seconds
        else:
            self._timed += seconds

    def time(self, call: Callable[[], Any], *, bare: bool = False) -> tuple[Any, Timing]:
        self._timed = self._aside = 0.0
        out = call()
        slowness = 1 + self.drift * float(np.sin(self.seconds))
        slowness *= 1 + self.noise * float(self.chance.standard_normal())
        if self.chance.random() < self.outliers:
            slowness *= 1 + float(self.chance.exponential())
        timed = 1e-6 + self._timed * slowness  # two events in a row are never quite none apart
        hidden = timed if bare else timed + self.flush
        self.seconds += self.flush + timed + self._aside
        return out, Timing(timed, max(0.0, self._aside - hidden) + 1e-5)

    def wait(self) -> None:
        self.seconds += 1e-3

    def peak(self, call: Callable[[], Any]) -> tuple[Any, int]:
        return call(), 0

    def now(self) -> float:
        return self.seconds

    def probes(self, size: int) -> dict[str, Probe]:
        # a terabyte and a hundred tera-operations a second
        return {
            "copy": Probe(lambda: self.work(size / 1e12), size),
            "read": Probe(lambda: self.work(size / 2e12), size // 2),
            "matmul": Probe(lambda: self.work(1e-3), 1e11),
        }

    def state(self) -> dict[str, str]:
        return {}

    def machine(self) -> dict[str, str]:
        return {"gpu": self.name, **versions()}


def versions() -> dict[str, str]:
    """Of Python, torch and triton."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": triton,
    }
