"""What statistics of a run cost: ``python -m benchmarks.statistics``, which writes statistics.md beside it.

Reports are made in processes of their own, which say how much memory they took; sinks take turns in one process.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time, thread_time
from typing import Any

import numpy as np
import torch
from torch import nn

import fastrec
from benchmarks.files import HERE, NullSink, Row
from fastrec import Recorder
from fastrec.predicates import every, op
from fastrec.sinks import RAMSink, StatisticsSink

GIGABYTE = 1_000_000_000

RUNS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "256 KiB a record": (lambda: nn.Sequential(nn.Identity(), nn.ReLU(), nn.Tanh()), (64, 1024), 2),
    "images of 64 channels": (lambda: nn.Sequential(nn.Identity(), nn.ReLU(), nn.Tanh()), (8, 64, 28, 28), 2),
    "4 KiB a record": (lambda: nn.Sequential(nn.Identity(), nn.ReLU(), nn.Tanh()), (16, 64), 2),
}
"""A model, the shape of its input, and how many records a pass has."""


def write_run(path: Path, name: str) -> None:
    """A recording of 1 GB."""
    make, shape, sites = RUNS[name]
    model, passes = make(), GIGABYTE // (4 * sites * int(np.prod(shape)))
    torch.manual_seed(0)
    pool = torch.randn(16, *shape)
    with torch.no_grad(), Recorder(model, keep_op=["relu", "tanh"], sink=path) as rec:
        for index in range(passes):
            model(pool[index % 16] * (1 + index / passes))
            rec.step(reward=float(index))


def resident(field: str) -> float:
    """The memory of this process in MB, at the moment (VmRSS) or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(field))


def read_run(path: str, how: str) -> dict[str, float]:
    """Read a recording in one way, in this process: how much CPU time and memory that took."""
    torch.set_num_threads(1)
    recording = fastrec.load(path)
    before, began = resident("VmRSS"), process_time()
    if how == "rows":
        for site in recording.sites:
            rows = recording.rows(site)
            step = max(1, (4 << 20) // rows.row_bytes)
            for start in range(0, len(rows), step):
                float(rows[start : start + step][0].reshape(-1)[0])
    elif how == "exact":
        for site in recording.sites:
            rows = recording.rows(site)
            step = max(1, len(rows) // 200)
            for start in range(0, len(rows), step):
                _exact(rows[start : start + step].numpy())
    else:
        recording.to_html(f"{path}.html", ranks=how == "ranks", overwrite=True)
    return {"seconds": process_time() - began, "most": resident("VmHWM"), "more": resident("VmHWM") - before}


def _exact(values: Any) -> dict[str, float]:
    """What numpy says of the values of a time bin, one measure after the other."""
    units = values.reshape(-1, values.shape[-1])
    quantiles = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    return {
        "mean": float(values.mean(dtype=np.float64)),
        "std": float(values.std(dtype=np.float64)),
        "min": float(values.min()),
        "max": float(values.max()),
        "median": float(quantiles[2]),
        "zeros": float((values == 0).mean()),
        "dead_units": float((units == 0).all(axis=0).mean()),
        "norm": float(np.linalg.norm(units, axis=1).mean()),
        "nan": float(np.isnan(values).sum()),
        "mean of |unit|": float(np.abs(units).mean(axis=0).mean()),
    }


def check_run(path: Path) -> None:
    """The statistics are those that numpy computes."""
    recording = fastrec.load(path).select(passes=slice(0, 64))
    statistics = recording.describe(bins=1, ranks=False)
    for name, site in statistics.items():
        if site.unit_axis != len(recording.rows(name).shape) - 2:
            continue  # of channels numpy's rows above are others
        exact = _exact(recording.stack(name).numpy())
        for measure in ("mean", "std", "min", "max", "zeros", "dead_units", "norm", "nan"):
            np.testing.assert_allclose(site[measure][0], exact[measure], rtol=1e-5, atol=1e-7)
        assert abs(site["median"][0] - exact["median"]) <= 0.16 * abs(exact["median"]) + 1e-6


def in_a_process(*arguments: str) -> dict[str, float]:
    """What ``read_run`` returns in a new process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.statistics", *arguments]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=True)
    costs: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return costs


def reports(folder: Path, rounds: int = 3) -> list[Row]:
    """The page of 1 GB of values."""
    rows: list[Row] = []
    for name in RUNS:
        path = folder / "run.h5"
        write_run(path, name)
        check_run(path)
        costs = {how: [in_a_process(str(path), how) for _ in range(rounds)] for how in ("rows", "page", "exact")}
        costs["ranks"] = [in_a_process(str(path), "ranks")]
        seconds = {how: [run["seconds"] for run in runs] for how, runs in costs.items()}
        page, rows_only = costs["page"], median(seconds["rows"])
        spread = f"{min(seconds['page']):.1f} to {max(seconds['page']):.1f}"
        most, more = max(run["most"] for run in page), max(run["more"] for run in page)
        rows += [
            (f"1 GB, {name}: page without ranks", f"{median(seconds['page']):.1f} s ({spread})", "5 s"),
            ("reading the values and nothing else", f"{rows_only:.1f} s", ""),
            ("with effective ranks", f"{seconds['ranks'][0]:.1f} s", ""),
            ("part of the measures, one by one in numpy", f"{median(seconds['exact']):.1f} s", ""),
            ("memory of the process at most; more than before it read", f"{most:.0f} MB; {more:.0f} MB", "300 MB more"),
        ]
        for file in folder.iterdir():
            file.unlink()
    return rows


def sinks(folder: Path, rounds: int = 9, passes: int = 4000) -> list[Row]:
    """A policy whose pass has four records of 4 KiB, into a sink that keeps statistics alone."""
    torch.manual_seed(0)
    model = nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(64, 64), nn.Tanh())))
    obs = torch.randn(16, 64)
    makers: dict[str, tuple[Callable[[], Any], Any]] = {
        "null": (NullSink, "tanh"),
        "ram": (RAMSink, "tanh"),
        "statistics": (StatisticsSink, "tanh"),
        "of ten": (lambda: StatisticsSink(every=10), "tanh"),
        "null, skipped": (NullSink, op("tanh") & every(1_000_000)),
        "null, skipped again": (NullSink, op("tanh") & every(1_000_000)),
        "statistics, skipped": (StatisticsSink, op("tanh") & every(1_000_000)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    order = list(makers)
    with torch.no_grad():
        for _ in range(rounds):
            order = order[1:] + order[:1]
            for name in order:
                make, keep = makers[name]
                sink = make()
                with Recorder(model, keep_op=keep, sink=sink):
                    for _ in range(300):
                        model(obs)
                    began = thread_time()
                    for _ in range(passes):
                        model(obs)
                    seconds[name].append((thread_time() - began) / passes)
                if name == "statistics":
                    assert all(site.records == passes + 300 for site in sink.statistics.values())

    def share(name: str, other: str, records: int) -> str:
        each = [1e6 * (a - b) / records for a, b in zip(seconds[name], seconds[other], strict=True)]
        low, high = np.quantile(each, [0.25, 0.75])
        return f"{median(each):.2f} us ({low:.2f} to {high:.2f})"

    return [
        ("StatisticsSink, of a record of 4 KiB", share("statistics", "null", 4), "15 us"),
        ("RAMSink, of the same", share("ram", "null", 4), ""),
        ("StatisticsSink(every=10), of the same", share("of ten", "null", 4), ""),
        ("StatisticsSink, of a pass that every(n) skips", share("statistics, skipped", "null, skipped", 1), "nothing"),
        ("no sink at all, of the same: the noise", share("null, skipped again", "null, skipped", 1), ""),
    ]


def long_run(folder: Path, passes: int = 400_000) -> list[Row]:
    """A run of many passes, whose statistics take as much memory at its end as at a tenth of it."""
    model, x, sink, sizes = nn.Sequential(nn.Linear(64, 64), nn.ReLU()), torch.randn(16, 64), StatisticsSink(), []
    with torch.no_grad(), Recorder(model, keep_op="relu", sink=sink) as rec:
        for index in range(passes):
            model(x)
            rec.step(terminated=index % 200 == 199)
            if index % (passes // 10) == passes // 10 - 1:
                sizes.append(resident("VmRSS"))
    assert sink.statistics["1/relu"].records == passes
    return [
        (f"{passes:,} passes: memory grown from a tenth of them to all", f"{sizes[-1] - sizes[0]:.1f} MB", "8 MB"),
    ]


PARTS: dict[str, Callable[[Path], list[Row]]] = {"sinks": sinks, "long": long_run, "reports": reports}


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1 and sys.argv[1] not in PARTS:
        print(json.dumps(read_run(sys.argv[1], sys.argv[2])))
        return
    rows: list[Row] = []
    for name in sys.argv[1:] or PARTS:
        with tempfile.TemporaryDirectory(dir=HERE.parent) as folder:
            part = PARTS[name](Path(folder))
            print(f"{name}:", *part, sep="\n  ", flush=True)
            rows += part
    if len(sys.argv) == 1:
        (HERE / "statistics.md").write_text(_page(rows))


def _page(rows: list[Row]) -> str:
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    table = "\n".join(f"| {what} | {figure} | {limit} |" for what, figure, limit in rows)
    return f"""# Statistics of a run

Written by `make bench-statistics`, which takes about five minutes. {os.cpu_count()} cores, {platform.machine()};
{versions}. CPU time of one thread. Each report is made in a process of its own, the median of three, with the least and
the most; sinks take turns in one process, the median over the rounds with its quartiles. What is reported is compared
with what numpy computes from the same values.

| what | measured | limit |
|---|---|---|
{table}

The page has 200 time bins, and each bin the mean, the deviation, seven quantiles and extremes, zeros, dead and dormant
units, saturation, norms with their quantiles, NaN, infinities and drift. The row of numpy has about half of them.
"""


if __name__ == "__main__":
    main()
