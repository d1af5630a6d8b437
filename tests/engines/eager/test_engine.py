"""The eager engine keeps the contract of engines, and records what no two passes do alike."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastrec import Recorder
from tests.contracts.engine import EVERYTHING, EngineContract
from tests.helpers.models import DYNAMIC, encoder
from tests.helpers.naive import assert_same_events, events_of, naive_events, same_bits, seeded


class TestEagerEngine(EngineContract):
    engine = "eager"


@pytest.mark.parametrize("name", DYNAMIC)
def test_passes_that_run_differently_are_recorded_right(name: str) -> None:
    make, shape = DYNAMIC[name]
    model = make()
    inputs = [torch.randn(shape) for _ in range(25)]
    with Recorder(model, **EVERYTHING) as rec:
        for x in inputs:
            model(x)
    expected = [naive_events(model, lambda x=x: model(x)) for x in inputs]
    assert name != "branching" or len({len(events) for events in expected}) > 3
    for number, events in enumerate(expected):
        assert_same_events(events_of(rec.recording, number), events)


@pytest.mark.parametrize("training", [True, False])
def test_gpt2_is_recorded_as_the_reference_does(training: bool) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).train(training)
    tokens = torch.randint(50, (2, 5))

    def call() -> Any:
        with seeded():
            return model(tokens, labels=tokens, output_hidden_states=True)

    with Recorder(model, **EVERYTHING) as rec:
        out = call()
    assert same_bits(out.loss, call().loss)
    found = events_of(rec.recording)
    assert_same_events(found, naive_events(model, call))
    assert {":out.loss", ":out.logits", ":out.hidden_states[1]", "lm_head"} <= {event.site for event in found}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_encoder_under_evaluation_is_one_event_for_each_fused_module() -> None:
    model, x = encoder().eval(), torch.randn(2, 3, 8)
    mask = torch.tensor([[False, False, True], [False, False, False]])
    with torch.no_grad():
        expected = model(x)
        masked = model[0](x, src_key_padding_mask=mask)
        with Recorder(model, keep_module=["0", "1"]) as rec:
            assert same_bits(model(x), expected)
            assert same_bits(model[0](x, src_key_padding_mask=mask), masked)
    assert [record.ctx.site for record in rec.recording] == ["0", "1", "0"]
    assert same_bits(rec.recording[2].activation, masked)


_STEPS: dict[str, Any] = {
    "relu": lambda m, x: x.relu(),
    "tanh": lambda m, x: torch.tanh(x),
    "add": lambda m, x: x + 1,
    "rsub": lambda m, x: 1 - x,
    "add_": lambda m, x: x.contiguous().add_(1),
    "imul": lambda m, x: _imul(x.contiguous()),
    "view": lambda m, x: x.reshape(-1).view(3, 3),
    "t": lambda m, x: x.T.contiguous(),
    "expand": lambda m, x: x[:1].expand(3, 3),
    "setitem": lambda m, x: _setitem(x.clone()),
    "split": lambda m, x: torch.cat(x.split(1)),
    "max": lambda m, x: x + x.max(0).values,
    "softmax": lambda m, x: x.softmax(-1),
    "norm": lambda m, x: nn.functional.normalize(x),
    "a": lambda m, x: m.a(x),
    "b": lambda m, x: m.b(x),
    "shared": lambda m, x: m.a.inner(x),
    "catch": lambda m, x: m.catch(x),
    "new": lambda m, x: nn.Tanh()(x),
}


def _imul(x: Tensor) -> Tensor:
    x *= 0.5
    return x


def _setitem(x: Tensor) -> Tensor:
    x[0] = 2
    return x


class _Block(nn.Module):
    def __init__(self, steps: list[str]) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = _STEPS[step](self, x)
        return self.inner(x)


class _Fragile(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.relu().sum() > 2:
            raise ArithmeticError
        return x.sin()


class _Made(nn.Module):
    """A model that hypothesis makes: steps in a branch, steps in a loop, and those after."""

    def __init__(self, parts: list[list[str]]) -> None:
        super().__init__()
        self.parts = parts[:3]
        self.a = _Block([step for step in parts[3] if step not in "ab shared catch"])
        self.b = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), self.a)
        self.fragile = _Fragile()

    def catch(self, x: Tensor) -> Tensor:
        try:
            return self.fragile(x)
        except ArithmeticError:
            return x.cos()

    def forward(self, x: Tensor) -> Tensor:
        branch, loop, rest = self.parts
        x = x.clone()
        if x.sum() > 0:
            for step in branch:
                x = _STEPS[step](self, x)
        for _ in range(int(x.abs().sum() * 10) % 3):
            for step in loop:
                x = _STEPS[step](self, x)
        for step in rest:
            x = _STEPS[step](self, x)
        return x


_parts = st.lists(st.lists(st.sampled_from(sorted(_STEPS)), max_size=4), min_size=4, max_size=4)


@settings(max_examples=150)
@given(_parts, st.lists(st.integers(0, 100), min_size=1, max_size=5))
def test_any_model_is_recorded_as_the_reference_does(parts: list[list[str]], seeds: list[int]) -> None:
    model = _Made(parts)
    inputs = [torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    with torch.no_grad():
        with Recorder(model, **EVERYTHING) as rec:
            outputs = [model(x) for x in inputs]
        for number, x in enumerate(inputs):
            assert_same_events(events_of(rec.recording, number), naive_events(model, lambda x=x: model(x)))
            assert same_bits(outputs[number], copy.deepcopy(model)(x))
