"""Modules, classes and functions in place of names, and what is said of names that matched nothing."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastrec
from fastrec import FastrecError, FastrecWarning, Recorder, dry_run, record
from fastrec.predicates import inside, module, module_input, module_type, op, phase


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.attn(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.h:
            x = block(x)
        return self.norm(x)


X = torch.randn(2, 4)


@pytest.mark.parametrize(
    ("choose", "sites"),
    [
        (lambda net: {"keep_module": net.h[1]}, ["h.1"]),
        (lambda net: {"keep_module": [net.h[0].attn, "norm", nn.Tanh]}, ["h.0.attn", "h.0.mlp.1", "h.1.mlp.1", "norm"]),
        (lambda net: {"keep_module": (net.norm,)}, ["norm"]),
        (lambda net: {"keep_module": {nn.LayerNorm, nn.Tanh}}, ["h.0.mlp.1", "h.1.mlp.1", "norm"]),
        (lambda net: {"keep_module": module(net.h[0], "norm")}, ["h.0", "norm"]),
        (lambda net: {"keep_module": module("h.*") & ~module(net.h[0])}, ["h.1"]),
        (lambda net: {"keep_module": module_input(net.h[1]).with_(dtype=torch.float64)}, ["h.1:in[0]"]),
        (lambda net: {"keep_op": inside(net.h[0].mlp)}, ["h.0.mlp.0/linear", "h.0.mlp.1/tanh"]),
        (lambda net: {"keep_op": torch.tanh}, ["h.0.mlp.1/tanh", "h.1.mlp.1/tanh"]),
        (lambda net: {"keep_op": [torch.Tensor.add, "layer_norm"]}, ["h.0/add", "h.1/add", "norm/layernorm"]),
        (lambda net: {"keep_op": op(F.linear) & inside("h.*.attn")}, ["h.0.attn/linear", "h.1.attn/linear"]),
        (lambda net: {"keep_module": net}, [":out"]),
    ],
)
def test_objects_in_place_of_names(choose: Any, sites: list[str]) -> None:
    net = Net()
    assert sorted(record(net, X, **choose(net)).sites) == sites
    dry = dry_run(net, X, **choose(net))
    assert sorted({ctx.site for ctx in dry.kept}) == sites
    assert sorted({ctx.site for ctx in dry_run(net, X).repredicate(**choose(net)).kept}) == sites


def test_a_module_of_one_of_several_roots_and_the_address_in_the_header() -> None:
    actor, critic = Net(), nn.Linear(4, 1)
    with Recorder({"actor": actor, "critic": critic}, keep_module=[actor.h[0], critic]) as rec:
        critic(actor(X))
    assert list(rec.recording.sites) == ["actor.h.0", "critic"]
    assert rec._catalog.header["keep_module"] == "module('actor.h.0', 'critic')"


def test_a_module_of_another_model_is_refused_without_printing_it() -> None:
    with pytest.raises(
        FastrecError, match=r"got a module \(Block\) that is not in the recorded model \(Net\)"
    ) as caught:
        Recorder(Net(), keep_module=Block())
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"keep_module": "tanh"},
            "keep_module: 'tanh' matched no module address; it is the type of an op, .* keep_op='tanh'",
        ),
        ({"keep_module": "LayerNorm"}, "it is the type of an op"),
        ({"keep_module": "Block"}, r"it is the name of a class: module_type\('Block'\)"),
        ({"keep_op": "h.0.attn"}, r"keep_op: 'h.0.attn' .* keep_module=, .* keep_op=module\('h.0.attn'\)"),
        ({"keep_op": "h.0/add"}, r"a site is selected by op\('add'\) & module\('h.0'\)"),
        ({"keep_module": "h.*attn"}, r"'\*' stays within one level, .* 'h.\*\*attn' takes 'h.0.attn' and 1 more"),
        ({"keep_module": "*.attn"}, r"'\*\*.attn' takes 'h.0.attn' and 1 more"),
        ({"keep_module": "h"}, r"'h' matched 'h', which was not called in any pass; 'h.\*' is what is in it"),
        ({"keep_module": "nrom"}, "did you mean 'norm'"),
        ({"keep_op": "tahn"}, "did you mean 'tanh'"),
        ({"keep_op": "tanh", "keep_module": module_type("Blokc")}, "did you mean 'Block'"),
    ],
)
def test_names_that_match_nothing_are_told_with_what_was_meant(options: dict[str, Any], message: str) -> None:
    with pytest.warns(FastrecWarning, match=message):
        record(Net(), X, **options)
    with pytest.warns(FastrecWarning, match=message):
        dry_run(Net(), X, **options)
    dry = dry_run(Net(), X)
    with pytest.warns(FastrecWarning, match=message):
        dry.repredicate(**options)


def test_the_pattern_that_a_message_names_takes_what_it_says() -> None:
    with pytest.warns(FastrecWarning) as caught:
        record(Net(), X, keep_module="*.attn")
    pattern = re.search(r"levels: '(.*?)' takes", str(caught[0].message)).group(1)  # type: ignore[union-attr]
    assert list(fastrec.record(Net(), X, keep_module=pattern).sites) == ["h.0.attn", "h.1.attn"]


class Score(nn.Module):
    def forward(self, x: torch.Tensor) -> float:
        return float(x.sum())


class Scored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score, self.other, self.head = Score(), Score(), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(x) * self.score(x) * self.other(x)
        return out


@pytest.mark.parametrize("choice", ["score", "sc*", Score])
@pytest.mark.parametrize("engine", ["eager", "static"])
def test_a_selected_module_that_returned_no_tensor_is_told(choice: Any, engine: str) -> None:
    with pytest.warns(FastrecWarning, match="selects 'score'.*, which ran and returned no tensor, so nothing"):
        with Recorder(Scored(), keep_module=[choice, "head"], engine=engine) as rec:
            for _ in range(4):
                rec.log(torch.ones(2, 4))
    assert list(rec.recording.sites) == ["head"]


@pytest.mark.parametrize("choice", [True, "head", module("score") & phase("eval"), ~module("score")])
@pytest.mark.filterwarnings("ignore:keep_module. 'eval' matched")
def test_what_was_not_named_or_not_selected_is_not_told(choice: Any) -> None:
    with Recorder(Scored(), keep_module=choice, keep_op="linear") as rec:
        rec.log(torch.ones(2, 4))
    assert "head/linear" in rec.recording.sites
