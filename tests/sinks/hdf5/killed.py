"""Recordings that somebody kills. After each flush they write the number of the last pass that is safe into a file.

As a program it forks a recording for each line (path, seed) that it reads and prints its process id, and after the next
line how it ended; so torch is imported once. Each value says which pass and site it is of, so that a reader can check
it without the writer.
"""

import os
import signal
import sys
import threading
import time
from random import Random

import torch
from stable_baselines3.common.callbacks import BaseCallback

from fastrec import Recorder
from fastrec.sinks import HDF5Sink, RAMSink
from tests.sinks.hdf5 import learning

SUFFIX = ".flushed"


class Late(torch.nn.Module):
    """A model of which new parts run as time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(torch.nn.Identity() for _ in range(40))

    def forward(self, x: torch.Tensor, parts: int) -> torch.Tensor:
        for i, part in enumerate(self.parts[:parts]):
            part(x + i / 64)
        return x


def rows_of(index: int) -> int:
    return 4 + index // 50 % 3


def parts_of(index: int) -> int:
    return min(40, 2 + index // 20)


class Moment:
    """When the process ends itself: at a late site, during close, or never, where somebody else does it."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._what = random.choice(["never", "never", "late", "close"])
        self._late = random.randrange(1, 38) * 20

    def passed(self, index: int) -> None:
        """A pass ended."""
        if self._what == "late" and index == self._late:
            time.sleep(self._random.choice([0, 0.001, 0.02]) * self._random.random())
            os.kill(os.getpid(), signal.SIGKILL)

    def closing(self) -> None:
        """The session is about to end."""
        if self._what == "close":
            wait = self._random.choice([0.001, 0.01, 0.05]) * self._random.random()
            threading.Timer(wait, os.kill, (os.getpid(), signal.SIGKILL)).start()


def record(path: str, seed: int) -> None:
    random, model = Random(seed), Late()
    moment, message = Moment(random), os.open(path + SUFFIX, os.O_CREAT | os.O_WRONLY)
    sessions, passes = random.choice([1, 1, 3]), random.choice([60, 400, 3000])
    size, compression = random.choice([1 << 20, 1 << 21, 1 << 28]), random.choice([None, None, "gzip"])
    block, rows = random.choice([1 << 12, 1 << 16]), random.choice([None, 50])
    for number in range(sessions):
        sink = HDF5Sink(
            path,
            append=number > 0,
            segment_bytes=size,
            block_bytes=block,
            flush_seconds=0.02,
            flush_rows=rows,
            compression=compression,
        )
        first, stop = number * passes // sessions, (number + 1) * passes // sessions
        with Recorder(model, keep_module=True, sink=sink) as rec:
            for index in range(first, stop):
                model(torch.full((rows_of(index), 24), float(index)), parts_of(index))
                rec.step(number=index, both=[index, -index])
                moment.passed(index)
                if index % 7 == 0:
                    rec.flush()
                    os.pwrite(message, b"%9d" % index, 0)
                elif index % 7 == 4:
                    flushed = first + int(sink.statistics()["passes_flushed"]) - 1
                    os.pwrite(message, b"%9d" % max(flushed, first - 1), 0)
            if number == sessions - 1:
                moment.closing()
        os.pwrite(message, b"%9d" % (stop - 1), 0)


def is_rollout(seed: int) -> bool:
    """Whether a seed stands for a training run, and not for the model of which new parts run."""
    return seed % 3 == 0


class FlushReporter(BaseCallback):
    """Flushes after some steps of a training run, and reports what the sink has flushed after others."""

    def __init__(self, sink: HDF5Sink, message: int, moment: Moment) -> None:
        super().__init__()
        self._sink, self._message, self._moment = sink, message, moment

    def _on_step(self) -> bool:
        self._moment.passed(self.n_calls * 4)
        if self.n_calls % 7 == 1:
            self._sink.flush()
        if self.n_calls % 7 in (1, 4):
            os.pwrite(self._message, b"%9d" % (int(self._sink.statistics()["passes_flushed"]) - 1), 0)
        return True


def record_rollout(path: str, seed: int) -> None:
    random = Random(seed)
    moment, message = Moment(random), os.open(path + SUFFIX, os.O_CREAT | os.O_WRONLY)
    size, rows = random.choice([1 << 20, 1 << 28]), random.choice([None, 50])
    compression = random.choice([None, None, "gzip"])
    sink = HDF5Sink(path, segment_bytes=size, flush_seconds=0.02, flush_rows=rows, compression=compression)
    rec = learning.learn(sink, FlushReporter(sink, message, moment))
    moment.closing()
    rec.__exit__(None, None, None)
    os.pwrite(message, b"%9d" % (int(sink.statistics()["passes_flushed"]) - 1), 0)


def main() -> None:
    torch.set_num_threads(1)
    learning.learn(RAMSink()).__exit__(None, None, None)  # what torch imports for it takes longer than the run itself
    while line := sys.stdin.readline():
        path, seed = line.rstrip("\n").split("\t")
        child = os.fork()
        if not child:
            (record_rollout if is_rollout(int(seed)) else record)(path, int(seed))
            os._exit(0)
        print(child, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
