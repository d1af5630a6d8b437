"""What recording a compiled model costs: ``python -m benchmarks.compiled`` writes compiled.md beside it.

Each model runs compiled by inductor under ``torch.no_grad()`` in one thread: alone, recorded, and in a session that
keeps one pass in a hundred. They take turns in blocks of 60 ms, and a figure is the lowest decile of a block's CPU time
per pass, so that what other processes take does not count.
"""

from __future__ import annotations

import os
import platform
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import torch

from benchmarks.models import CASES, Case, load
from fastrec import Recorder
from fastrec.predicates import every, op

BLOCKS, SECONDS = 40, 0.06

PAGE = """# Recording compiled models

Made by `python -m benchmarks.compiled` with torch {torch}, Python {python}, one thread, random weights, inductor and
`torch.no_grad()`; {cores} cores, {machine}. CPU time per pass, the lowest decile of {blocks} blocks of {ms} ms in which
the contestants take turns in one process; each recorded pass is taken with `rec.pop()`. What was recorded is compared
with the eager engine's. Limits: recorded and 1 in 100 at most 1.05 and 1.02 of compiled.

| model | eager | compiled | recorded | of compiled | keeps 1 in 100 | of compiled | first call | of the session | MiB |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
{rows}

The first call compiles, without anything in a cache; the first call of a session compiles once more, and runs the model
without compiled code to learn the names. MiB is the most memory that the process ever had, which grows from row to row.
"""


def main() -> None:
    """Measure all models."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as cache, torch.no_grad():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for name in CASES:
            rows.append(_row(load(name)))
            print(rows[-1], flush=True)
    page = PAGE.format(
        torch=torch.__version__,
        python=platform.python_version(),
        cores=os.cpu_count(),
        machine=platform.machine(),
        blocks=BLOCKS,
        ms=round(SECONDS * 1e3),
        rows="\n".join(rows),
    )
    Path(__file__).with_suffix(".md").write_text(page)


def _row(case: Case) -> str:
    example = case.example
    first, once = _compiled(case)
    with Recorder(first, keep_op=case.layer_type) as rec:
        began = perf_counter()
        first(example)
        again = perf_counter() - began
        kept = rec.pop()
        for record, expected in zip(kept, _eager(case), strict=True):
            torch.testing.assert_close(record.activation, expected, rtol=1e-3, atol=1e-4)

        def recorded() -> None:
            first(example)
            rec.pop()

        # Each has compiled code of its own: they take turns while both sessions are open.
        second, _ = _compiled(case)
        third, _ = _compiled(case)
        with Recorder(third, keep_op=op(case.layer_type) & every(100)) as sometimes:

            def rested() -> None:
                third(example)
                sometimes.pop()

            eager, bare, full, rest = _turns([lambda: case.model(example), lambda: second(example), recorded, rested])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times = f"{eager:,.1f} us | {bare:,.1f} us | {full:,.1f} us | {full / bare:.3f}"
    times += f" | {rest:,.1f} us | {rest / bare:.3f}"
    return f"| {case.name} | {times} | {once:.1f} s | {again:.1f} s | {peak:,.0f} |"


def _compiled(case: Case) -> tuple[Any, float]:
    model = torch.compile(case.model)
    began = perf_counter()
    model(case.example)
    return model, perf_counter() - began


def _eager(case: Case) -> list[torch.Tensor]:
    with Recorder(case.model, keep_op=case.layer_type) as rec:
        case.model(case.example)
    return [record.activation for record in rec.recording]


def _turns(calls: list[Callable[[], Any]]) -> list[float]:
    """Microseconds per call of each, the lowest decile of its blocks."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        for _ in range(3):
            call()
    began = perf_counter()
    calls[0]()
    size = max(1, int(SECONDS / (perf_counter() - began)))
    for _ in range(BLOCKS):
        for call, found in zip(calls, times, strict=True):
            began = thread_time()
            for _ in range(size):
                call()
            found.append((thread_time() - began) / size * 1e6)
    return [sorted(found)[len(found) // 10] for found in times]


if __name__ == "__main__":
    main()
