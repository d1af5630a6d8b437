"""What a folder of many files costs to read: ``python -m benchmarks.folders``, which writes folders.md.

Four hundred processes leave a file each, of 50 passes with 10 records. The ways to read take turns in one process, and
a ratio is the median of those of the rounds. All reads come from the page cache.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn

import fastrec
from fastrec import Recorder
from fastrec.files import describe
from fastrec.sinks import HDF5Sink
from fastrec.sinks.hdf5.folder_index import INDEX

FILES, PASSES, SITES, BATCH, WIDTH, ROUNDS = 400, 50, 10, 8, 16, 7
KEY = "0/linear"
PAGE = Path(__file__).with_suffix(".md")

Row = tuple[str, str, str]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run, plain = Path(folder) / "run", Path(folder) / "plain"
        record(run)
        recording = fastrec.load(run)
        assert (len(recording.ranks), len(recording)) == (FILES, FILES * PASSES * SITES)
        write_plain(recording, plain)
        rows = [*opening(run), *reading(recording, plain)]
    PAGE.write_text(page(rows))
    print(PAGE.read_text())


def record(run: Path) -> None:
    """A file of each rank, one after another."""
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(SITES)))
    for rank in range(FILES):
        with torch.no_grad(), as_rank(rank), Recorder(model, keep_op="linear", sink=HDF5Sink(f"{run}/")) as rec:
            for _ in range(PASSES):
                model(torch.randn(BATCH, WIDTH))
                rec.step(reward=1.0)


@contextmanager
def as_rank(rank: int) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(FILES))
    yield
    os.environ.clear()
    os.environ.update(before)


def write_plain(recording: fastrec.Recording, plain: Path) -> None:
    """The values of one site as anybody would write them: a file for each rank, one data set."""
    plain.mkdir()
    for rank, part in recording.ranks.items():
        with h5py.File(plain / f"{rank:04d}.h5", "w") as file:
            file["x"] = part.to_numpy(KEY)


def read_plain(plain: Path) -> Any:
    return np.concatenate([h5py.File(path)["x"][:] for path in sorted(plain.iterdir())])


def opening(run: Path) -> list[Row]:
    """Opening, and what is known then."""
    load = seconds(lambda: fastrec.load(run))
    busy = seconds(lambda: fastrec.load(run), clock=time.process_time)
    told = seconds(lambda: describe(run))
    (run / INDEX).unlink()
    first = seconds(lambda: describe(run), rounds=1)
    recording = fastrec.load(run)
    ranks = seconds(lambda: len(recording.ranks))
    parts = seconds(lambda: [part.n_passes for part in recording.ranks.values()])
    tracemalloc.start()
    recording = fastrec.load(run)
    opened = tracemalloc.get_traced_memory()[0] / (FILES * PASSES * SITES)
    recording.stack(KEY)
    used = tracemalloc.get_traced_memory()[0] / (FILES * PASSES * SITES)
    tracemalloc.stop()
    return [
        ("`load`", f"{spread(load)} s", "1 s"),
        ("`load`, CPU time", f"{spread(busy)} s", ""),
        ("what `fastrec info` says, from the index", f"{spread(told)} s", ""),
        ("the same without an index, which is made", f"{first[0]:.3f} s", ""),
        ("`recording.ranks`", f"{spread(ranks)} s", "0.1 s"),
        ("each of `recording.ranks` made once", f"{spread(parts)} s", ""),
        ("memory of an opened recording, per record", f"{opened:.0f} bytes", "32 bytes"),
        ("the same after a `stack`", f"{used:.0f} bytes", ""),
    ]


def reading(recording: fastrec.Recording, plain: Path) -> list[Row]:
    """Values of one site of all files."""
    assert np.array_equal(recording.to_numpy(KEY), read_plain(plain))
    by_step = recording.stack(KEY, by="step")
    assert torch.equal(by_step.transpose(0, 1).flatten(0, 1), recording.stack(KEY))
    ours, theirs, aligned = [], [], []
    for _ in range(ROUNDS):
        theirs += seconds(lambda: read_plain(plain), rounds=1)
        ours += seconds(lambda: recording.stack(KEY), rounds=1)
        aligned += seconds(lambda: recording.stack(KEY, by="step"), rounds=1)
    ratios = [there / here for here, there in zip(ours, theirs, strict=True)]
    return [
        (f"`stack` of one site, of h5py file by file ({recording.stack(KEY).nbytes >> 20} MiB)", spread(ratios), "0.5"),
        ("h5py, file by file", f"{spread(theirs)} s", ""),
        ("`stack(by='step')`: steps and ranks as axes", f"{spread(aligned)} s", ""),
    ]


def seconds(
    function: Callable[[], Any], rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    taken = []
    for _ in range(rounds):
        start = clock()
        function()
        taken.append(clock() - start)
    return taken


def spread(values: list[float]) -> str:
    """The median, with the least and the most."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def page(rows: list[Row]) -> str:
    table = "\n".join(f"| {what} | {measured} | {limit} |" for what, measured, limit in rows)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, h5py {h5py.__version__}"
    return f"""\
# A folder of many files

Written by `make bench-folders`, in about two minutes. {os.cpu_count()} cores, {platform.machine()}; {versions}.
{FILES} files of {PASSES} passes with {SITES} records of {BATCH}x{WIDTH} float32 each. Contestants take turns in one
process; medians of {ROUNDS} rounds, with the least and the most. What `stack` gives is compared with what h5py reads.
Memory is what Python and numpy allocate. Where the CPU time of `load` is far below its time, the machine was busy.

| what | measured | limit |
|---|---|---|
{table}
"""


if __name__ == "__main__":
    main()
