"""What events are called: the same in every pass, and whatever is kept."""

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastrec import FastrecWarning, Recorder, record
from fastrec.predicates import inside, kind, module, op, shape, structural
from tests.contracts.engine import EVERYTHING
from tests.helpers.models import DYNAMIC, MODELS, Attends, Branching, Shared, encoder
from tests.helpers.naive import Event, events_of, same_bits, seeded

PREDICATES: dict[str, Any] = {
    "one type": {"keep_op": "linear"},
    "an inner type": {"keep_op": "scaleddotproductattention"},
    "modules beside ops": {"keep_module": True, "keep_op": "add"},
    "inputs of modules": {"keep_op": "dropout", "keep_module": kind("module_enter")},
    "by module": {"keep_op": op("*") & inside("attn", "0.layers.0", "layer1.*")},
    "by shape": {"keep_op": shape(..., 8)},
    "opaque": {"keep_op": lambda ctx: ctx.op_index % 3 == 0},
    "outside of composites": {"keep_op": structural(lambda ctx: ctx.is_bottom_level_func)},
}


@pytest.mark.parametrize("keep", PREDICATES)
@pytest.mark.parametrize("name", [*MODELS, *DYNAMIC])
def test_names_and_numbers_do_not_hang_on_what_is_kept(name: str, keep: str) -> None:
    make, size = {**MODELS, **DYNAMIC}[name]
    model, x = make(), torch.randn(size)
    twin = copy.deepcopy(model)
    with Recorder(model, **EVERYTHING) as full, seeded():
        model(x.clone())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FastrecWarning)  # not every model has what every predicate keeps
        with Recorder(twin, **PREDICATES[keep]) as part, seeded():
            twin(x.clone())
    known = {event.label: event for event in events_of(full.recording, inside=True)}
    found = events_of(part.recording, inside=True)
    assert [event.facts for event in found] == [known[event.label].facts for event in found]
    assert all(same_bits(event.value, known[event.label].value) for event in found)
    order = list(known)
    assert [order.index(event.label) for event in found] == sorted(order.index(event.label) for event in found)


def test_sites_stay_where_a_branch_is_not_taken() -> None:
    model = Branching()
    outer, seen = nn.Sequential(model, nn.Tanh()), set()
    with Recorder(outer, keep_op=True) as rec:
        for _ in range(30):
            outer(torch.randn(3, 4))
    for number in range(30):
        events = events_of(rec.recording, number)
        seen.add(len(events))
        assert events[-1].site == "1/tanh"
        assert events[0].site == "0.lin/linear"
        assert all(event.site in ("0.lin/linear", "0.side/linear") for event in events if event.layer_type == "linear")
    assert len(seen) > 3


def test_ordinals_count_inside_of_one_module_call() -> None:
    recording = record(Shared(), torch.randn(3, 4), keep_op=True)
    assert [record.ctx.site for record in recording] == [
        *("first/linear", "first/linear", "first/linear", "block.1/tanh"),
        *("/sin", "/sin_2", "/sin_3", "/add"),
    ] or [record.ctx.site for record in recording] == [
        *("first/linear", "first/linear", "/sin", "first/linear", "block.1/tanh", "/sin_2", "/sin_3", "/add"),
    ]
    assert [r.ctx.label for r in recording if r.ctx.layer_type == "linear"] == ["linear_1", "linear_2", "linear_3"]
    assert [r.ctx.module_pass_index for r in recording["first/linear"]] == [1, 2, 3]


def test_a_shared_module_is_found_by_each_of_its_addresses() -> None:
    model, x = Shared(), torch.randn(3, 4)
    for address in ("first", "second", "block.0"):
        recording = record(model, x, keep_module=address)
        assert [r.ctx.site for r in recording] == ["first", "first", "first"]
        assert [r.ctx.label for r in recording] == ["first:1", "first:2", "first:3"]


class Calls(nn.Module):
    """Calls a composite between ops of the types that run inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, torch.eye(8)).softmax(-1)
        y = self.attn(x, x, x)[0]
        return F.linear(y, torch.eye(8)).softmax(-1) + F.gumbel_softmax(y)


def test_what_runs_inside_of_a_composite_does_not_count_outside() -> None:
    recording = record(Calls(), torch.randn(2, 3, 8), keep_op=True)
    outside = [record.ctx for record in recording if "/" not in record.ctx.label]
    assert [ctx.label for ctx in outside if ctx.layer_type in ("linear", "softmax")] == [
        *("linear_1", "softmax_1", "linear_2", "softmax_2")
    ]
    assert [ctx.site for ctx in outside if ctx.layer_type == "softmax"] == ["/softmax", "/softmax_2"]
    inner = [record.ctx for record in recording if record.ctx.label.startswith("multiheadattentionforward_1/")]
    assert "attn/multi_head_attention_forward/softmax" in {ctx.site for ctx in inner}
    assert "multiheadattentionforward_1/softmax_1" in {ctx.label for ctx in inner}
    assert {ctx.module_address for ctx in inner} == {"attn"}
    assert sorted({ctx.op_index for ctx in outside}) == list(range(1 + outside[-1].op_index))
    composite = next(ctx for ctx in outside if ctx.layer_type == "multiheadattentionforward")
    assert not composite.is_bottom_level_func and all(ctx.is_bottom_level_func for ctx in outside[:2])
    after = next(ctx for ctx in outside if ctx.op_index == composite.op_index + 1)
    assert after.recent_ops[-1].label.startswith("multiheadattentionforward_1")
    assert "/" not in "".join(event.label for event in after.recent_ops)


def test_an_opened_composite_computes_the_same_bits() -> None:
    model, x = Attends(), torch.randn(2, 3, 8)
    with seeded():
        expected = model(x)
    with seeded():
        out, recording = record(model, x, keep_op="softmax", return_output=True)
    assert same_bits(out, expected)
    assert any("/" in record.ctx.label for record in recording)


def test_several_roots_have_their_names_in_front() -> None:
    actor, critic = nn.Sequential(nn.Linear(4, 3), nn.Tanh()), nn.Linear(4, 1)
    with Recorder({"actor": actor, "critic": critic}, **EVERYTHING) as rec:
        actor(torch.randn(2, 4))
        critic(torch.randn(2, 4))
        actor[1](torch.randn(2, 4))
    names = [[event.site for event in events_of(rec.recording, number)] for number in range(3)]
    assert names[0] == [
        *("actor:in[0]", "actor.0:in[0]", "actor.0/linear", "actor.0"),
        *("actor.1:in[0]", "actor.1/tanh", "actor.1", "actor"),
    ]
    assert names[1] == ["critic:in[0]", "critic/linear", "critic"]
    assert names[2] == ["actor.1:in[0]", "actor.1/tanh", "actor.1"]
    assert [record.ctx.entry for record in rec.recording if record.ctx.kind == "op"] == [
        *("actor", "actor", "critic", "actor.1")
    ]


def test_a_root_may_be_a_part_of_another_root() -> None:
    body = nn.Linear(4, 4)
    model = nn.Sequential(body, nn.Tanh())
    with Recorder({"model": model, "body": body}, keep_module=["model.0", "body"]) as rec:
        model(torch.randn(2, 4))
        body(torch.randn(2, 4))
    assert [record.ctx.site for record in rec.recording] == ["model.0", "model.0"]


def test_regions_name_what_runs_outside_of_modules() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    with Recorder(model, **EVERYTHING) as rec:
        for _ in range(2):
            with rec.region("act"):
                x = torch.zeros(2, 4) + 1
                y = model(x)
                model[1](y).sum()
        with rec.region():
            torch.ones(1).neg()
    for number in range(2):
        events = events_of(rec.recording, number)
        assert [event.site for event in events if event.kind == "op"] == [
            *(":act/zeros", ":act/add", "0/linear", "1/tanh", "1/tanh", ":act/sum")
        ]
        assert events[-1].module_stack == ()
    assert [event.site for event in events_of(rec.recording, 2)] == [":region/ones", ":region/neg"]
    assert [rec.recording[i].ctx.entry for i in (0, -1)] == ["act", "region"]
    assert rec.recording[0].ctx.module_address == ""


def test_leaves_of_nested_values_are_named_by_their_path() -> None:
    recording = record(nn.LSTM(4, 5), torch.randn(3, 2, 4), keep_module=True)
    assert [r.ctx.site for r in recording] == [":out[0]", ":out[1][0]", ":out[1][1]"]
    assert [r.ctx.output_index for r in recording] == [0, 1, 2]
    assert [r.ctx.input_output_address for r in recording] == ["[0]", "[1][0]", "[1][1]"]
    nested = record(MODELS["nested"][0](), torch.randn(3, 4), keep_module=True)
    assert [r.ctx.site for r in nested] == [
        *("give_dict:out.a", "give_dict:out.b[0]", "give_dict:out.b[1]", "give_dict[7]"),
        *("give_pair:out.left", "give_pair:out.right[0]"),
        *("give_out:out.logits", "give_out:out.hidden[0]", "give_out:out.hidden[1]"),
        *(":out.logits", ":out.hidden[0]", ":out.hidden[1]"),
    ] or [r.ctx.site for r in nested][2] == "give_dict[7]"


def test_a_key_finds_the_same_site_in_every_pass() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    with Recorder(model, keep_op=True) as rec:
        model(torch.randn(2, 4))
        model[1](torch.randn(2, 4))
        model(torch.randn(2, 4))
    assert [record.ctx.label for record in rec.recording["3/relu"]] == ["relu_2", "relu_2"]
    assert [record.ctx.label for record in rec.recording["1/relu"]] == ["relu_1"] * 3


def test_a_module_that_is_replaced_keeps_the_address() -> None:
    class Replaces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 4)
            self.__dict__["spare"] = [nn.Linear(4, 4) for _ in range(3)]

        def forward(self, x: Tensor) -> Tensor:
            self.head = self.spare.pop() if x.sum() > 0 else nn.Tanh()
            return self.head(x)

    model = Replaces()
    with Recorder(model, keep_module="head", keep_op=True) as rec:
        outputs = [model(torch.full((2, 4), sign)) for sign in (1.0, -1.0, 1.0, 1.0)]
    sites = [event.site for number in range(4) for event in events_of(rec.recording, number)]
    assert sites == ["/sum", "/gt", "head/linear", "head", "/sum", "/gt", "head/tanh", "head"] + 2 * [
        *("/sum", "/gt", "head/linear", "head")
    ]
    assert all(same_bits(a.activation, b) for a, b in zip(rec.recording["head"], outputs, strict=True))
    assert len(rec._engine._passes.registry.by_id) == 2


def test_swapped_modules_swap_their_addresses_with_the_next_scan() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with Recorder(model, keep_module=["0", "1"]) as rec:
        model[0], model[1], extra = model[1], model[0], nn.Linear(4, 4)
        model.append(extra)
        model(torch.ones(1, 4))  # meets the module that it does not know
        first = model[0](torch.ones(1, 4))
        model(torch.ones(1, 4))
    assert [record.ctx.site for record in rec.recording.iter_pass(2)] == ["0", "1"]
    assert same_bits(rec.recording.iter_pass(2).__next__().activation, first)


def test_lazy_modules_are_recorded_from_their_first_call_on() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Tanh())
    with Recorder(model, keep_op="linear", keep_module=["0"]) as rec:
        for _ in range(2):
            model(torch.randn(2, 3))
    assert [event.site for event in events_of(rec.recording, 0)] == ["0/linear", "0"]
    assert [event.site for event in events_of(rec.recording, 1)] == ["0/linear", "0"]


def test_functions_that_a_model_makes_anew_are_bounded() -> None:
    class Anew(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.overrides.handle_torch_function(lambda x: x + 1, (x,), x)

    with Recorder(Anew(), keep_module="") as rec:
        rec.log(torch.ones(2))
    assert len(rec.recording) == 1


def test_modules_of_no_root_belong_to_the_module_that_calls_them() -> None:
    class Closure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.Sequential(nn.Tanh(), nn.ReLU())(x).relu()

    recording = record(Closure(), torch.randn(2), keep_op=True, keep_module=True)
    assert [r.ctx.site for r in recording] == ["/tanh", "/relu", "/relu_2", ":out"]


def test_module_predicates_select_outputs_in_keep_module_and_ops_in_keep_op() -> None:
    model, x = encoder(), torch.randn(2, 3, 8)
    recording = record(model, x, keep_op=module("1"), keep_module=module("1"))
    assert [r.ctx.site for r in recording] == ["1/linear", "1"]


def test_events_tell_the_call_of_each_module_on_the_stack() -> None:
    recording = record(MODELS["recursive"][0](), torch.randn(3, 4), keep_op="relu")
    stacks = [Event.of(record).module_stack for record in recording]
    assert stacks == [tuple(("", call + 1) for call in range(depth + 1)) for depth in range(4)]
