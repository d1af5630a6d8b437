"""Whether memory stays flat over ten million records: ``python -m benchmarks.files_memory``, which takes minutes."""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

import fastrec
from fastrec import Recorder

RECORDS = 10_000_000


def resident() -> float:
    """The memory that this process has at this moment, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> None:
    records = int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS
    torch.set_num_threads(1)
    model, x, passes = nn.Sequential(*(nn.Tanh() for _ in range(4))), torch.randn(16), records // 4
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent.parent) as folder:
        path, began, found = Path(folder) / "run.h5", perf_counter(), []
        with torch.no_grad(), Recorder(model, keep_op="tanh", sink=path) as rec:
            for index in range(passes):
                model(x)
                rec.step(reward=index)
                if index % (passes // 10) == passes // 10 - 1:
                    found.append(resident())
                    seconds = perf_counter() - began
                    print(f"{4 * (index + 1):>9} records, {seconds:5.0f} s, {found[-1]:6.0f} MB", flush=True)
        recording = fastrec.load(path)
        assert len(recording) == 4 * passes and len(recording.steps) == passes
    grown = found[-1] - found[0]
    print(f"from a tenth to all of it, the memory grew by {grown:.0f} MB")
    assert grown < 32


if __name__ == "__main__":
    main()
