"""What recording a compiled model costs: ``python -m benchmarks.compiled`` writes compiled.md beside it.

Each contestant runs in a process of its own, as an open recorder, or another compiled copy of the same code, slows a
compiled model down that is not recorded. The processes take turns in short blocks, so that each meets the same noise,
and are made anew several times, because how a process happens to lie in memory moves a small model by some percent.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time

import torch
from torch import Tensor, nn

from benchmarks.contestants import COMPILED, hooks
from benchmarks.contestants._watch import Watch
from benchmarks.models import CASES, Case, load

ROUNDS, BLOCKS, SECONDS = 3, 40, 0.04

PAGE = """# Recording compiled models

Made by `python -m benchmarks.compiled` with torch {torch}, Python {python}, one thread, random weights, inductor and
`torch.no_grad()`; {cores} cores, {machine}. CPU time per pass in microseconds. Each contestant has a process of its
own, in which it alone runs the model; the processes take turns in blocks of {ms} ms. A figure is the lowest decile of
{blocks} blocks, and then the median of {rounds} rounds with new processes; ratios are taken within a round. What was
recorded is taken with `rec.pop()` after each pass, and compared with what hooks on the model that is not compiled keep.
Limits: recorded at most 1.05, and 1 pass in 100 at most 1.02 of compiled.

{table}

"eager" is the model that is not compiled, and "hooks" are forward hooks by hand that are compiled with the model.

| model | first call | of the session | MiB | of the session |
|---|---:|---:|---:|---:|
{costs}

The first call compiles, without anything in a cache. The first call of a session compiles a graph with more outputs,
with a cache in which the compiled model is, and runs the model without compiled code to learn the names. MiB is the
most memory that the process had until then, torch included.
"""


def main() -> None:
    """Measure all models."""
    rows, costs = [], []
    for name in CASES:
        rounds = [_round(name) for _ in range(ROUNDS)]
        rows.append(_row(name, rounds))
        costs.append(_cost(name, rounds[0]))
        print(rows[-1], costs[-1], sep="\n", flush=True)
    heads = " | ".join(f"{key} | of compiled" if key != "compiled" else key for key in COMPILED)
    lines = "|".join("---:|---:" if key != "compiled" else "---:" for key in COMPILED)
    page = PAGE.format(
        torch=torch.__version__,
        python=platform.python_version(),
        cores=os.cpu_count(),
        machine=platform.machine(),
        rounds=ROUNDS,
        blocks=BLOCKS,
        ms=round(SECONDS * 1e3),
        table="\n".join([f"| model | {heads} |", f"|---|{lines}|", *rows]),
        costs="\n".join(costs),
    )
    Path(__file__).with_suffix(".md").write_text(page)


Round = dict[str, dict[str, float]]
"""Of each contestant: microseconds per pass, seconds of the first call, MiB."""


def _round(name: str) -> Round:
    """Let the contestants take turns, each in a new process."""
    times: dict[str, list[float]] = {key: [] for key in COMPILED}
    with tempfile.TemporaryDirectory() as cache, ExitStack() as stack:
        links, facts = {}, {}
        for key in COMPILED:  # one after the other, so that none disturbs another one's first call
            links[key] = stack.enter_context(_process(name, key, cache))
            facts[key] = links[key].recv()
        for _ in range(BLOCKS):
            for key, link in links.items():
                link.send(None)
                times[key].append(link.recv())
    return {key: {"us": sorted(times[key])[BLOCKS // 10] * 1e6, **facts[key]} for key in COMPILED}


@contextmanager
def _process(name: str, key: str, cache: str) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    link, other = context.Pipe()
    process = context.Process(target=_serve, args=(other, name, key, cache))
    process.start()
    other.close()
    try:
        yield link
    finally:
        link.close()
        process.join()


def _serve(link: Connection, name: str, key: str, cache: str) -> None:
    """Make a block of passes each time that something is received, until the other end closes."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    torch.set_num_threads(1)
    case, contestant = load(name), COMPILED[key]
    with torch.no_grad(), contestant.watching(case) as watch:
        began = perf_counter()
        watch.call(case.example)
        first = perf_counter() - began
        if contestant.KEEPS:
            _check(watch.read(watch.pop()), load(name).model, case)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for _ in range(10):
            watch.call(case.example)
            watch.pop()
        began = perf_counter()
        watch.call(case.example)
        passes = max(1, int(SECONDS / (perf_counter() - began)))
        link.send({"first": first, "mib": peak})
        with suppress(EOFError):
            while True:
                link.recv()
                link.send(_block(watch, case.example, passes))


def _block(watch: Watch, example: Tensor, passes: int) -> float:
    call, pop = watch.call, watch.pop
    began = thread_time()
    for _ in range(passes):
        call(example)
        pop()
    return (thread_time() - began) / passes


def _check(kept: list[Tensor], plain: nn.Module, case: Case) -> None:
    """Assert that these are the values that hooks keep on the same model, which is not compiled here."""
    with hooks.watching(replace(case, model=plain)) as watch:
        plain(case.example)
        for value, expected in zip(kept, watch.read(watch.pop()), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)


def _row(name: str, rounds: list[Round]) -> str:
    cells = [name]
    for key in COMPILED:
        cells.append(f"{median(each[key]['us'] for each in rounds):,.1f}")
        if key != "compiled":
            cells.append(f"{median(each[key]['us'] / each['compiled']['us'] for each in rounds):.3f}")
    return f"| {' | '.join(cells)} |"


def _cost(name: str, costs: Round) -> str:
    alone, session = costs["compiled"], costs["recorded"]
    return (
        f"| {name} | {alone['first']:.1f} s | {session['first']:.1f} s | {alone['mib']:,.0f} | {session['mib']:,.0f} |"
    )


if __name__ == "__main__":
    main()
