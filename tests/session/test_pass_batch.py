"""Passes whose values are kept uncopied, however they are read, popped and trimmed."""

import random
import sys
import threading
from typing import Any

import pytest
import torch
from torch import nn

from fastrec import Recorder, Recording
from fastrec.predicates import every, op


def policy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 1))


def facts_of(recording: Recording) -> list[tuple[int, str, list[float]]]:
    return [(r.ctx.pass_index, r.ctx.site, r.activation.flatten().tolist()) for r in recording]


def expected(model: nn.Module, inputs: list[torch.Tensor]) -> list[list[tuple[str, list[float]]]]:
    values = []
    with torch.no_grad():
        for x in inputs:
            hidden = model[1](model[0](x))
            out = model[3](model[2](hidden))
            values.append([("1/tanh", hidden.flatten().tolist()), ("3/relu", out.flatten().tolist())])
    return values


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("options", [{}, {"retain": 5}])
def test_what_is_read_popped_and_kept_is_every_pass_once(seed: int, options: dict[str, Any]) -> None:
    rng, model = random.Random(seed), policy()
    inputs = [torch.randn(1, 3, generator=torch.Generator().manual_seed(i)) for i in range(400)]
    right = expected(model, inputs)
    popped: list[tuple[int, str, list[float]]] = []
    read: list[Recording] = []
    with torch.no_grad(), Recorder(model, keep_op=["tanh", "relu"], engine="static", **options) as rec:
        for number, x in enumerate(inputs):
            model(x)
            if number < 8 or rng.random() < 0.02:  # long stretches without a pop are packed
                taken = rec.pop()
                popped += facts_of(taken)
                assert taken.n_records == len(taken)
            if rng.random() < 0.02:
                read.append(rec.recording)
        popped += facts_of(rec.pop())
        assert len(rec.recording) == 0
    if not options:
        assert popped == [(i, site, value) for i, values in enumerate(right) for site, value in values]
    for seen in [popped, *map(facts_of, read)]:
        assert all((site, value) in right[i] for i, site, value in seen)
        assert [i for i, _, _ in seen] == sorted(i for i, _, _ in seen)


def test_threads_that_pop_at_once_share_the_passes() -> None:
    model, x = policy(), torch.ones(1, 3)
    taken: list[int] = []

    def pop() -> None:
        for _ in range(300):
            with torch.no_grad():
                model(x)
            taken.extend(record.ctx.pass_index for record in rec.pop())

    with torch.no_grad(), Recorder(model, keep_op="tanh", engine="static") as rec:
        for _ in range(5):
            model(x)
        taken += [record.ctx.pass_index for record in rec.pop()]
        threads = [threading.Thread(target=pop) for _ in range(4)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
    assert sorted(taken) == list(range(5 + 4 * 300))


def test_passes_that_kept_nothing_are_counted_by_whoever_pops_them() -> None:
    model = policy()
    counts = []
    with torch.no_grad(), Recorder(model, keep_op=op("tanh") & every(3), engine="static") as rec:
        for _ in range(12):
            model(torch.ones(1, 3))
            counts.append(rec.pop().n_passes)
    assert counts == [1] * 12


class Raises(nn.Module):
    """The last module of a model; when it raises, nobody holds the values of the modules before it."""

    def __init__(self) -> None:
        super().__init__()
        self.raises = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.raises:
            raise ArithmeticError("no")
        return x


@pytest.mark.parametrize("failing", range(1, 6))
@pytest.mark.parametrize("on_forward_error", ["drop", "keep"])
def test_a_pass_that_raises_after_its_last_value_is_dropped_or_kept(on_forward_error: str, failing: int) -> None:
    end, x = Raises(), torch.ones(1, 3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), end)
    with torch.no_grad():
        hidden = model[1](model[0](x))
    counts = []
    with torch.no_grad(), Recorder(model, keep_op="tanh", engine="static", on_forward_error=on_forward_error) as rec:
        for number in range(10):
            end.raises = number == failing
            if end.raises:
                with pytest.raises(ArithmeticError):
                    model(x)
            else:
                model(x)
            popped = rec.pop()
            counts.append(popped.n_records)
            assert all(torch.equal(record.activation, hidden) for record in popped)
    assert counts == [int(number != failing or on_forward_error == "keep") for number in range(10)]
