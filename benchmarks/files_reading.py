"""How fast a recording of a million small records reads: ``python -m benchmarks.files_reading``.

Contestants take turns in one process, and the quickest of several rounds counts: it is the one that the rest of the
machine disturbed least. All reads come from the page cache.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn

import fastrec
from fastrec import Recorder
from fastrec.sinks import HDF5Sink

PASSES, WIDTH, ROUNDS = 250_000, 64, 7
KEY = "0/tanh"


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path, plain = Path(folder) / "run.h5", Path(folder) / "plain.h5"
        record(path)
        recording = fastrec.load(path)
        values = recording.to_numpy(KEY)
        with h5py.File(plain, "w") as file:
            file["x"] = values
        assert np.array_equal(read_plain(plain), values)
        opened = quickest(lambda: len(fastrec.load(path)), lambda: None)[0]
        ours, theirs = quickest(lambda: recording.stack(KEY), lambda: read_plain(plain))
        batches, _ = quickest(lambda: drain(recording, shuffle=False), lambda: None, rounds=3)
        shuffled, _ = quickest(lambda: drain(recording, shuffle=True), lambda: None, rounds=3)
        size, grew = values.nbytes, memory_of_batches(recording)
    rows = [
        ("open a million records, and count them", f"{opened * 1e3:.0f} ms", "200 ms"),
        (f"`stack` of one site ({size >> 20} MiB), of plain h5py", f"{theirs / ours:.2f}", "0.70"),
        ("batches of 256 rows in order", f"{PASSES / batches / 1e6:.1f} million rows/s", ""),
        ("batches of 256 rows, shuffled", f"{PASSES / shuffled / 1e6:.1f} million rows/s", ""),
        ("memory that shuffled batches take, with buffers of 4 MiB", f"{grew / 2**20:.0f} MiB", "16 MiB"),
    ]
    for what, found, limit in rows:
        print(f"{what:60} {found:>22} {limit:>10}")


def record(path: Path) -> None:
    """Four records of 256 bytes in each pass."""
    model = nn.Sequential(*(nn.Tanh() for _ in range(4)))
    given = torch.randn(1, WIDTH)
    with Recorder(model, keep_op="tanh", sink=HDF5Sink(path)), torch.no_grad():
        for _ in range(PASSES):
            model(given)


def read_plain(path: Path) -> Any:
    with h5py.File(path) as file:
        return file["x"][:]


def drain(recording: fastrec.Recording, *, shuffle: bool) -> None:
    for _ in recording.iter_batches(KEY, 256, shuffle=shuffle):
        pass


def memory_of_batches(recording: fastrec.Recording) -> int:
    """By how much the most memory that this process ever took grows."""
    batches = recording.iter_batches(KEY, 256, shuffle=True, buffer_bytes=4 << 20)
    next(iter(batches))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in batches:
        pass
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def quickest(one: Callable[[], object], other: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """The least seconds that each took, by turns."""
    found = [[], []]
    for _ in range(rounds):
        for call, times in zip((one, other), found, strict=True):
            start = perf_counter()
            call()
            times.append(perf_counter() - start)
    return min(found[0]), min(found[1])


if __name__ == "__main__":
    main()
