"""What it costs to compare values with their checksums: ``python -m benchmarks.verifying``, which writes verifying.md.

A recording that is loaded with ``verify=True`` and one without take turns in one process, each loaded anew, and read
from the page cache. CPU time of one thread.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn

import fastrec
from benchmarks.files import HERE, Row
from fastrec import Recorder, Recording
from fastrec.files import verify
from fastrec.sinks import HDF5Sink

BYTES = 64 << 20

SHAPES = {"256 B": (1, 64), "4 KiB": (16, 64), "256 KiB": (64, 1024)}

SITE = "0/tanh"


def record(path: Path, shape: tuple[int, ...], **options: Any) -> int:
    """A recording of 64 MiB of one site; how many records it has."""
    model, passes = nn.Sequential(nn.Tanh()), BYTES // (4 * int(np.prod(shape)))
    pool = torch.randn(16, *shape)
    with torch.no_grad(), Recorder(model, keep_op="tanh", sink=HDF5Sink(path, **options)):
        for index in range(passes):
            model(pool[index % 16])
    return passes


def ways(records: int) -> dict[str, Callable[[Recording], Any]]:
    """How a recording is read."""
    chosen = np.random.default_rng(0).choice(records, max(1, min(1000, records // 10)), replace=False).tolist()
    return {
        "open, and count the records": len,
        "`stack` of all values": lambda recording: recording.stack(SITE),
        "1,000 single records, or a tenth of all": lambda recording: [recording[i].activation for i in chosen],
    }


def compared(path: Path, read: Callable[[Recording], Any], rounds: int) -> tuple[list[float], list[float]]:
    """The seconds of each round without and with checks."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(2 * rounds + 2):
        checks = bool((number + number // 2) % 2)
        began = process_time()
        read(fastrec.load(path, verify=checks))
        if number >= 2:
            seconds[checks].append(process_time() - began)
    return seconds


def rows_of(folder: Path, name: str, rounds: int = 9, **options: Any) -> list[Row]:
    """The rows of one size of values."""
    path = folder / "run.h5"
    records = record(path, SHAPES[name], **options)
    assert torch.equal(fastrec.load(path, verify=True).stack(SITE), fastrec.load(path).stack(SITE))
    rows: list[Row] = []
    for what, read in ways(records).items():
        plain, checked = compared(path, read, rounds)
        ratios = [b / a for a, b in zip(plain, checked, strict=True)]
        low, high = np.quantile(ratios, [0.25, 0.75])
        figures = f"{1e3 * median(plain):.0f} ms", f"{median(ratios):.2f} ({low:.2f} to {high:.2f})"
        label = f"{name} a record{''.join(f', {value}' for value in options.values())}: {what}"
        rows.append((label, *figures))
    began = process_time()
    result = verify(path)
    assert result.damage == []
    rows.append(
        (
            f"{label.partition(':')[0]}: `verify` of all",
            f"{1e12 * (process_time() - began) / result.nbytes:.0f} ms a GB",
            "",
        )
    )
    path.unlink()
    return rows


def main() -> None:
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name, options in [*((name, {}) for name in SHAPES), ("4 KiB", {"compression": "gzip:1"})]:
        with tempfile.TemporaryDirectory(dir=HERE.parent) as folder:
            rows += rows_of(Path(folder), name, **options)
        print(rows[-1], flush=True)
    (HERE / "verifying.md").write_text(_page(rows))


def _page(rows: list[Row]) -> str:
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    table = "\n".join(f"| {what} | {plain} | {ratio} |" for what, plain, ratio in rows)
    return f"""# What checks of a file cost

Written by `make bench-verifying`, which takes about two minutes. {os.cpu_count()} cores, {platform.machine()};
{versions}, h5py {h5py.__version__}. CPU time of one thread, from the page cache, of recordings of 64 MiB. Loading with
and without `verify=True` takes turns, each time from the start; medians of nine rounds, with their quartiles.

| what | plain | with `verify=True`, times as long |
|---|---|---|
{table}
"""


if __name__ == "__main__":
    main()
