"""A recording that somebody kills: prints the last pass that was flushed, and the step, after each flush.

Each value tells which pass and site it is of, so that a reader can check it without the writer.
"""

import sys
from random import Random

import torch

from fastrec import Recorder
from fastrec.sinks import HDF5Sink

FLUSHED = "flushed"


class Late(torch.nn.Module):
    """A model of which new parts run as time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(torch.nn.Identity() for _ in range(40))

    def forward(self, x: torch.Tensor, parts: int) -> torch.Tensor:
        for i, part in enumerate(self.parts[:parts]):
            part(x + i / 64)
        return x


def value_of(index: int, site: int, rows: int) -> torch.Tensor:
    return torch.full((rows, 24), float(index)) + site / 64


def rows_of(index: int) -> int:
    return 4 + index // 50 % 3


def record(path: str, seed: int) -> None:
    torch.set_num_threads(1)
    random, model = Random(seed), Late()
    size = random.choice([1 << 20, 1 << 21, 1 << 28])
    sink = HDF5Sink(path, segment_bytes=size, block_bytes=random.choice([1 << 12, 1 << 16]), flush_seconds=0.02)
    passes = random.choice([60, 400, 20000])
    with Recorder(model, keep_module=True, sink=sink) as rec:
        for index in range(passes):
            model(torch.full((rows_of(index), 24), float(index)), min(40, 2 + index // 20))
            rec.step(number=index, both=[index, -index])
            if index % 7 == 0:
                rec.flush()
                print(FLUSHED, index, flush=True)
    print(FLUSHED, passes - 1, "closed", flush=True)


if __name__ == "__main__":
    record(sys.argv[1], int(sys.argv[2]))
