"""Models compiled by inductor are recorded as by the eager engine, and compute as without a recorder."""

import copy
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.models import load
from fastrec import Recorder
from fastrec.predicates import module_type, op
from tests.helpers.compiling import EVERYTHING
from tests.helpers.compiling import fresh_dynamo as fresh_dynamo
from tests.helpers.naive import seeded, tensors_in
from tests.helpers.same_recordings import facts_of


def check(name: str, mode: str | None = None, **options: Any) -> None:
    case = load(name)
    found = []
    for compiled in (False, True):
        model = torch.compile(copy.deepcopy(case.model), mode=mode) if compiled else case.model
        with torch.no_grad(), Recorder(model, **options) as rec:
            out = [model(case.example) for _ in range(3)]
        found.append((rec.recording, out))
    (expected, outputs), (recording, others) = found
    assert len(expected) > 6
    assert [facts_of(record) for record in recording] == [facts_of(record) for record in expected]
    for mine, theirs in zip(recording, expected, strict=True):
        torch.testing.assert_close(mine.activation, theirs.activation, rtol=1e-3, atol=1e-4)
    for (_, one), (_, other) in zip(tensors_in(others), tensors_in(outputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_all_of_a_policy() -> None:
    check("mlp", **EVERYTHING)


@pytest.mark.slow
def test_the_mode_for_cuda_graphs_on_a_machine_without_them() -> None:
    check("mlp", mode="reduce-overhead", keep_op="tanh")


@pytest.mark.long
@pytest.mark.parametrize("name", ["gpt2", "resnet", "nature"])
def test_the_other_models_of_the_benchmarks(name: str) -> None:
    case = load(name)
    types = tuple({type(module) for module in case.model.modules() if type(module).__name__ == case.module_type})
    check(name, keep_op=case.layer_type, keep_module=module_type(*types))


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(self.first(x), 0.5, self.training).relu()
        nn.functional.dropout(x, 0.3, self.training)  # nobody uses it
        return nn.functional.dropout(self.second(x), 0.5, self.training) + torch.rand_like(x)


@pytest.mark.slow
@pytest.mark.parametrize("fallback", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_recorder_leaves_the_random_numbers_as_they_are(fallback: bool) -> None:
    model, x = Drops().train(), torch.randn(4, 8)
    results = []
    with torch._inductor.config.patch(fallback_random=fallback):
        for record in (False, True):
            torch._dynamo.reset()
            twin = copy.deepcopy(model)
            run = torch.compile(twin)
            with seeded(5), ExitStack() as stack:
                if record:
                    stack.enter_context(pytest.warns(match="'/dropout_2': not recorded, because"))
                    kept = op("dropout") | op("relu", "randlike").with_(keep_grad=True)
                    rec = stack.enter_context(Recorder(run, keep_op=kept))
                outputs = [run(x) for _ in range(3)]
                outputs[-1].sum().backward()
                results.append([*outputs, torch.get_rng_state(), *(p.grad for p in twin.parameters())])
    assert len(rec.recording) == 12
    assert torch.equal(rec.recording["/dropout"][0].activation.relu(), rec.recording["/relu"][0].activation)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
