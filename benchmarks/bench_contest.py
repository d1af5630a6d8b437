"""The overhead of each contestant on each model, as ratios to the bare forward pass."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.contest import Contest, check
from benchmarks.contestants import CONTESTANTS
from benchmarks.models import CASES, load

SECONDS = 25.0
"""How long one contest goes on."""


@pytest.mark.parametrize("popped", [True, False], ids=["popped", "retained"])
@pytest.mark.parametrize("name", CASES)
def test_overhead(benchmark: BenchmarkFixture, name: str, popped: bool) -> None:
    case = load(name)
    torch.set_num_threads(1)
    for contestant in CONTESTANTS.values():
        check(case, contestant, popped=popped)
    contest = Contest(case, CONTESTANTS, popped=popped)
    passes = case.passes if benchmark.enabled else 1
    rounds = max(20, round(SECONDS / contest.length(passes))) if benchmark.enabled else 1
    benchmark.extra_info.update(contest=name, title=case.title, popped=popped, passes=passes, seconds=contest.seconds)
    benchmark.pedantic(contest.round, args=(passes,), rounds=rounds)
    assert {len(times) for times in contest.seconds.values()} == {rounds}
