"""Contestants in turn, over many short rounds, so that each round's bare pass met the same noise as they did."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from time import perf_counter, thread_time
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.contestants import hooks
from benchmarks.models import Case


class Contest:
    """Rounds of all contestants on one case.

    ``seconds`` holds, by contestant, the CPU time of one pass in each round: this thread does all the work and waits
    for nothing, and so the time that other processes take from it does not count. With ``popped`` what was kept is
    taken away after each pass, else it is retained until the contestant's turn is over.
    """

    def __init__(self, case: Case, contestants: Mapping[str, ModuleType], *, popped: bool) -> None:
        self.seconds: dict[str, list[float]] = {key: [] for key in contestants}
        self._case = case
        self._contestants = contestants
        self._popped = popped
        self._order = list(contestants)
        self._random = random.Random(0)

    def round(self, passes: int) -> None:
        """Let each contestant make so many passes, in an order that is new each time."""
        self._random.shuffle(self._order)
        for key in self._order:
            self.seconds[key].append(self._turn(self._contestants[key], passes))

    def length(self, passes: int) -> float:
        """How long a round takes in seconds, by one that does not count."""
        began = perf_counter()
        self.round(passes)
        length = perf_counter() - began
        for times in self.seconds.values():
            times.clear()
        return length

    def _turn(self, contestant: ModuleType, passes: int) -> float:
        example = self._case.example
        with torch.no_grad(), contestant.watching(self._case) as watch:
            call, after = watch.call, watch.pop if self._popped else _nothing
            for _ in range(6 + passes // 10):  # a session learns the model in its first passes
                call(example)
                after()
            began = thread_time()
            for _ in range(passes):
                call(example)
                after()
            return (thread_time() - began) / passes


def check(case: Case, contestant: ModuleType, *, popped: bool) -> None:
    """Assert that a contestant keeps what hooks keep, value by value, and leaves the model's output as it is."""
    passes = [case.example, _other(case.example), case.example]
    expected = _run(case, hooks, passes, popped=False)
    assert expected[0], "the hooks found nothing to keep"
    kept, outputs = _run(case, contestant, passes, popped=popped)
    _assert_equal(kept, expected[0] if contestant.KEEPS else [])
    _assert_equal(outputs, expected[1])


def _run(
    case: Case, contestant: ModuleType, passes: list[Tensor], *, popped: bool
) -> tuple[list[Tensor], list[Tensor]]:
    outputs, taken = [], []
    with torch.no_grad(), contestant.watching(case) as watch:
        for example in passes:
            outputs += _tensors(watch.call(example))
            if popped:
                taken += watch.read(watch.pop())
    return taken + watch.read(watch.kept()), outputs


def _assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected), f"{len(found)} values, expected {len(expected)}"
    for index, (value, right) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(value, right), f"value {index} of shape {tuple(value.shape)} differs"


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple):
        for value in output:
            yield from _tensors(value)


def _other(example: Tensor) -> Tensor:
    return example.flip(-1)


def _nothing() -> None:
    pass
