"""Figures with a limit that are no ratios: sessions, memory, import."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from fastrec import FastrecWarning, Recorder

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _plain_passes() -> Iterator[None]:
    torch.set_num_threads(1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FastrecWarning)  # names of keys that matched nothing
        yield


def test_open_and_close_a_session(benchmark: BenchmarkFixture) -> None:
    """A session on 200 modules, without a pass."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(199)))
    assert len(list(model.modules())) == 200

    def session() -> None:
        with Recorder(model, keep_op="linear", keep_module="1*"):
            pass

    benchmark(session)
    if benchmark.enabled:
        _tell(benchmark, "opening and closing a session, 200 modules", 1e3 * benchmark.stats.stats.median, "ms", 1.0)


def test_bytes_per_record(benchmark: BenchmarkFixture) -> None:
    """What Python allocates for a record; tracemalloc does not see the memory of the values themselves."""
    model = nn.Sequential(*(nn.Tanh() for _ in range(4)))
    example = torch.zeros(8)
    passes = 10_000 if benchmark.enabled else 100

    def grow() -> float:
        with Recorder(model, keep_op="tanh") as rec:
            model(example)
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(passes):
                model(example)
            grown = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            assert len(rec.recording) == 4 * (passes + 1)
        return grown / (4 * passes)

    _tell(benchmark, "bytes per record beside the tensor", benchmark.pedantic(grow), "bytes", 150.0)


@pytest.mark.parametrize("opaque", [False, True], ids=["by structure", "asked each time"])
def test_growth_while_nothing_is_kept(benchmark: BenchmarkFixture, opaque: bool) -> None:
    """What Python and the process hold after many passes, against what they held after the first thousand."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    example = torch.zeros(4)
    passes = 100_000 if benchmark.enabled else 1_000
    keep_op = (lambda ctx: False) if opaque else "nosuchop"

    def grow() -> tuple[float, float]:
        with Recorder(model, keep_op=keep_op):
            for _ in range(1_000):
                model(example)
            before = sys.getallocatedblocks(), _resident()
            for _ in range(passes):
                model(example)
            return sys.getallocatedblocks() - before[0], _resident() - before[1]

    blocks, resident = benchmark.pedantic(grow)
    how = "a lambda asked each time" if opaque else "settled by structure"
    _tell(benchmark, f"growth over {passes:,} passes that keep nothing, {how}", resident / 2**20, "MiB", 0.25)
    benchmark.extra_info["blocks"] = blocks


def test_import(benchmark: BenchmarkFixture) -> None:
    """``import fastrec`` in a process that has imported torch, with its bytecode in place as pip leaves it."""
    # Importing torch leaves a full garbage collection due, which falls into whatever makes the next few objects.
    code = (
        "import gc, time, torch; gc.collect(); began = time.perf_counter(); import fastrec; "
        "print(time.perf_counter() - began)"
    )
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}

    def once() -> float:
        command = [sys.executable, "-c", code]
        return float(subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, check=True).stdout)

    once()  # writes the bytecode
    times = benchmark.pedantic(lambda: [once() for _ in range(7 if benchmark.enabled else 1)])
    _tell(benchmark, "import fastrec beyond import torch", 1e3 * median(times), "ms", 50.0)


def _tell(benchmark: BenchmarkFixture, figure: str, value: float, unit: str, limit: float) -> None:
    benchmark.extra_info.update(figure=figure, value=value, unit=unit, limit=limit)


def _resident() -> int:
    """Bytes of memory that this process occupies."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
