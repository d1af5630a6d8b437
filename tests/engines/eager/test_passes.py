"""What is settled once for a site keeps what would be kept if it were asked at each event."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastrec import CaptureSpec, FastrecWarning, Recorder
from fastrec.predicates import (
    after,
    dtype,
    entry,
    every,
    first,
    grad_enabled,
    inside,
    kind,
    module,
    module_input,
    module_type,
    op,
    phase,
    shape,
    structural,
)
from tests.contracts.engine import EVERYTHING
from tests.helpers.models import Attends, Branching, Shared
from tests.helpers.naive import Event, same_bits, seeded


class Model(nn.Module):
    """Branches, shared modules, attention, nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.branching, self.shared, self.attends = Branching(), Shared(), Attends()
        self.lstm = nn.LSTM(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.shared(self.branching(x))
        out, (h, c) = self.lstm(x.unsqueeze(0))
        y = self.attends(torch.cat([out, out], -1))
        values, places = (y + 1).max(0)
        return values, {"h": h, "places": places}


LEAVES = [
    *(op("relu"), op("linear", "s*"), op("max"), op("softmax", "baddbmm"), op("multiheadattentionforward")),
    *(module("branching.*"), module("shared.second"), module("", "lstm"), module_input("attends*"), inside("attends")),
    *(inside("shared", "branching"), module_type("Linear", "LSTM"), after("relu"), after("linear", within=4)),
    *(kind("module_exit"), kind("op", "module_enter"), shape(..., 4), shape(None, 8), dtype(torch.int64)),
    *(every(2), first(2), entry(""), entry("lstm"), phase("train"), grad_enabled()),
    structural(lambda ctx: ctx.output_index == 1),
    structural(lambda ctx: ctx.site.endswith("_2") or ctx.input_output_address == "[1][0]"),
    structural(lambda ctx: not ctx.is_bottom_level_func),
    structural(lambda ctx: ctx.func_name.startswith("__")),
    op("*") & structural(lambda ctx: len(ctx.module_stack) > 2),
    op("*") | (lambda ctx: ctx.layer_type_num > 2),
    ~op("*") | (lambda ctx: (ctx.op_index or 0) % 3 == 1),
    kind("op") & (lambda ctx: ctx.label.endswith("_2")),
    (lambda ctx: ctx.module_pass_index > 1) | op("tanh"),
    kind("op") & (lambda ctx: CaptureSpec(dtype=torch.float64) if ctx.layer_type == "sin" else None),
]

INPUTS = [torch.randn(3, 4, generator=torch.Generator().manual_seed(n)) for n in range(3)]


def run(model: nn.Module, rec: Recorder) -> None:
    for n, x in enumerate(INPUTS):
        with rec.phase("train" if n else "rollout"), seeded(n), torch.set_grad_enabled(n != 1):
            model(x)
            model.lstm(x.unsqueeze(0))


def joined(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Random expressions over some leaves."""
    return st.recursive(
        leaves,
        lambda parts: st.one_of(
            st.builds(lambda a, b: a & b, parts, parts),
            st.builds(lambda a, b: a | b, parts, parts),
            st.builds(lambda a: ~a, parts),
            st.builds(lambda a, to: a.with_(dtype=to), parts, st.sampled_from([torch.float64, None])),
        ),
        max_leaves=6,
    )


@cache
def everything() -> tuple[nn.Module, list[Any]]:
    """A model, and all records of its run."""
    torch.manual_seed(0)
    model = Model()
    with Recorder(copy.deepcopy(model), **EVERYTHING) as rec:
        run(rec._roots[""], rec)
    return model, list(rec.recording)


@pytest.mark.filterwarnings("ignore::fastrec.FastrecWarning")
@settings(max_examples=120)
@given(predicate=joined(st.sampled_from(LEAVES)))
def test_settling_changes_nothing(predicate: Any) -> None:
    model, full = everything()
    options = {"keep_op": predicate, "keep_module": predicate}
    possible = {"keep_op": ("op",), "keep_module": ("module_enter", "module_exit")}
    options = {name: p for name, p in options.items() if any(map(p.may_keep_kind, possible[name]))}
    if not options:
        assert not any(predicate(record.ctx) for record in full)
        return
    kinds = [kind for name in options for kind in possible[name]]
    expected = [record for record in full if record.ctx.kind in kinds and predicate(record.ctx) is not False]
    with Recorder(copy.deepcopy(model), **options, retain=1000) as rec:
        run(rec._roots[""], rec)
    found = list(rec.recording)
    observed = found[0].ctx.event_index is not None if found else True
    mine, theirs = [_told(record, observed) for record in found], [_told(record, observed) for record in expected]
    assert mine == theirs
    for record, other in zip(found, expected, strict=True):
        if record.activation is not None:
            assert same_bits(record.activation, other.activation.to(record.activation.dtype))


def _told(record: Any, observed: bool) -> tuple[Any, ...]:
    event = Event.of(record)
    facts = event.facts if observed else (event.kind, event.site, event.label, event.module_stack)
    return (record.ctx.pass_index, *facts)


class Looks(nn.Module):
    """Tells whether a function mode is there while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.seen, self.fails = nn.Tanh(), [], False

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(torch._C._len_torch_function_stack() > 0)
        if self.fails:
            raise ValueError("broken")
        return self.inner(x)


def test_a_pass_of_which_nothing_can_be_kept_is_not_watched() -> None:
    model = Looks()
    with Recorder(model, keep_op=op("tanh") & every(3)) as rec:
        for _ in range(7):
            model(torch.ones(2))
    assert model.seen == [True, False, False, True, False, False, True]
    assert [record.ctx.pass_index for record in rec.recording] == [0, 3, 6]
    assert rec.recording.n_passes == 7  # calls inside of one are no passes of their own
    with Recorder(model, keep_op=op("tanh") & every(3), keep_module="inner") as rec:
        model.seen.clear()
        for _ in range(4):
            model(torch.ones(2))
    assert all(model.seen)
    assert len(rec.recording) == 6


@pytest.mark.parametrize("keep", [True, False])
def test_a_pass_that_is_not_watched_may_fail(keep: bool) -> None:
    model = Looks()
    with Recorder(model, keep_op=op("tanh") & every(3), on_forward_error="keep" if keep else "drop") as rec:
        for model.fails in (False, True, False, False):
            if model.fails:
                with pytest.raises(ValueError, match="broken"):
                    model(torch.ones(2))
            else:
                model(torch.ones(2))
    assert [record.ctx.pass_index for record in rec.recording] == [0, 3]
    assert rec.recording.n_passes == (4 if keep else 3)


def test_where_no_pass_was_watched_only_that_is_told() -> None:
    with (
        pytest.warns(FastrecWarning, match="'eval' matched no phase of a pass") as told,
        Recorder(model := Looks(), keep_op=op("tanh") & phase("eval"), keep_module=module("inner") & phase("eval")),
    ):
        model(torch.ones(2))
    assert model.seen == [False]
    assert len(told) == 2  # one for each option
