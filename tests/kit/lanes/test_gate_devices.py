"""How a CUDA device is timed, on stand-ins for what torch.cuda is made of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from paperlings.lanes.gate import devices
from paperlings.lanes.gate.devices import Cuda, Probe, Processor, Simulated


class Fake:
    """A GPU that keeps a log, on which a second passes whenever the host asks for the time."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.seconds = 0.0
        self.current = "the default stream"

    def clock(self) -> float:
        self.seconds += 1.0
        return self.seconds

    def put_in(self, monkeypatch: pytest.MonkeyPatch) -> Cuda:
        fake = self

        class Event:
            def __init__(self, enable_timing: bool):
                self.at = 0.0

            def record(self, stream: str) -> None:
                assert stream == "the default stream"
                self.at = fake.clock()
                fake.log.append("record")

            def elapsed_time(self, end: Event) -> float:
                return 1e3 * (end.at - self.at)

        about = {"name": "NVIDIA H200", "L2_cache_size": 60 << 20, "total_memory": 140 << 30}
        properties = SimpleNamespace(**about, multi_processor_count=132, uuid="0-1")
        processor = torch.device("cpu")
        monkeypatch.setattr(torch, "device", lambda *_: processor)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.log.append("wait"))
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        monkeypatch.setattr(devices.time, "perf_counter", self.clock)
        monkeypatch.setattr(devices, "FLUSH", 1 << 10)
        device = Cuda()
        monkeypatch.undo()
        return device


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def cuda(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return fake.put_in(monkeypatch)


def test_a_call_lies_between_its_events_and_both_lie_after_the_flush(
    fake: Fake, cuda: Cuda
) -> None:
    """The flush hides the launch: nobody waits between it and the call, unless the call is bare."""
    cuda._dirty.zero_()
    out, timing = cuda.time(lambda: fake.log.append("call") or "answer")
    assert out == "answer"
    assert fake.log == ["wait", "record", "record", "call", "record", "wait"]
    assert float(cuda._dirty[-1]) > 0, "the flush has written"
    # the host saw two seconds more than the events: its own two questions for the time
    assert timing == pytest.approx((1.0, 2.0))
    fake.log.clear()
    _, bare = cuda.time(lambda: fake.log.append("call"), bare=True)
    assert fake.log == ["wait", "record", "wait", "record", "record", "call", "record", "wait"]
    assert bare == pytest.approx((1.0, 2.0))


def test_a_flush_is_four_caches_large(monkeypatch: pytest.MonkeyPatch, cuda: Cuda) -> None:
    """And 256 MB, or four times the cache where that is more, of it."""
    assert cuda._dirty.nbytes == cuda._clean.nbytes == 4 * (60 << 20)


def test_a_call_that_leaves_another_stream_behind_is_refused(fake: Fake, cuda: Cuda) -> None:
    """What comes after it would be timed on the wrong one."""
    cuda._current_stream = lambda: "another"
    with pytest.raises(RuntimeError, match="another stream"):
        cuda.time(lambda: None)


def test_where_nvidia_smi_is_missing_nothing_is_known_of_the_clocks(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked, and never told."""
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        asked.append(command)
        raise FileNotFoundError

    monkeypatch.setattr(devices.subprocess, "run", run)
    assert cuda.state() == {}
    assert cuda.machine()["driver"] == "unknown"
    assert all(
        part.startswith(("nvidia-smi", "--query", "--format", "-i", "GPU-")) for part in asked[0]
    )
    answer = SimpleNamespace(stdout="1980 MHz, 3201 MHz, 40, 100.00 W, 0x0\n")
    monkeypatch.setattr(devices.subprocess, "run", lambda *_, **__: answer)
    assert cuda.state()["clocks.sm"] == "1980 MHz"
    assert cuda.machine()["gpu"] == "NVIDIA H200"


@pytest.mark.parametrize("device", [Processor(), Simulated()])
def test_probes_say_how_much_they_move(device: Any) -> None:
    """A copy moves what it is asked to move, and a read half of that."""
    probes: dict[str, Probe] = device.probes(1 << 16)
    assert probes["copy"].amount == 2 * probes["read"].amount == 1 << 16
    for probe in probes.values():
        _, timing = device.time(probe.call)
        assert timing.seconds > 0
