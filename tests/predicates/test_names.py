"""What each public name selects."""

import pytest
import torch
from torch import nn

from fastrec.events.context import RecordContext
from fastrec.predicates import (
    ALWAYS,
    NEVER,
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
from fastrec.predicates._base import PredicateBase
from tests.helpers.predicate_events import event, site_of
from tests.helpers.stable_ids import stable

NET = ("", "Net")
ENCODER = ("encoder", "Sequential")
CONV = ("encoder.0", "Conv2d")


@pytest.mark.parametrize(
    ("predicate", "layer_type", "kept"),
    [
        (op("relu"), "relu", True),
        (op("relu"), "relu6", False),
        (op("relu*"), "relu6", True),
        (op("conv?d"), "conv2d", True),
        (op("conv[12]d"), "conv3d", False),
        (op("conv[!12]d"), "conv3d", True),
        (op("tanh", "relu"), "relu", True),
        (op("layer_norm"), "layernorm", True),
        (op("LayerNorm"), "layernorm", True),
        (op("max_pool2d"), "maxpool2d", True),
        (op("add_"), "add", True),
        (op("add"), "addmm", False),
        (op("*"), "anything", True),
        (~op("relu"), "relu", False),
    ],
    ids=stable,
)
def test_op(predicate: PredicateBase, layer_type: str, kept: bool) -> None:
    assert predicate(event("op", layer_type)) is kept


@pytest.mark.parametrize("other", ["module_enter", "module_exit", "input", "buffer"])
def test_op_selects_ops_alone(other: str) -> None:
    assert op("*")(event(other)) is False


@pytest.mark.parametrize("given", ["op", "module_enter", "module_exit", "input", "buffer"])
def test_kind(given: str) -> None:
    assert kind(given)(event(given)) is True
    assert kind(given)(event("op" if given != "op" else "input")) is False
    assert kind("op", "input", "buffer")(event(given)) is (given in {"op", "input", "buffer"})


# An event directly in encoder.0: which predicates select it, by the kind of the event.
@pytest.mark.parametrize(
    ("predicate", "op_kept", "exit_kept", "enter_kept"),
    [
        (module("encoder.0"), True, True, False),
        (module("encoder.*"), True, True, False),
        (module("enc*"), False, False, False),
        (module("enc**"), True, True, False),
        (module("*.0"), True, True, False),
        (module("**.0"), True, True, False),
        (module("**.encoder.0"), True, True, False),
        (module("encoder.**"), True, True, False),
        (module("encoder.**.0"), True, True, False),
        (module("e[a-n]coder.?"), True, True, False),
        (module("encoder[!a]0"), False, False, False),
        (module("encoder?0"), False, False, False),
        (module("encoder"), False, False, False),
        (module(""), False, False, False),
        (module("*"), False, False, False),
        (module("**"), True, True, False),
        (module("ENCODER.0"), False, False, False),
        (module_input("encoder.0"), False, False, True),
        (module_input("*"), False, False, False),
        (module_input("**"), False, False, True),
        (module_input("encoder"), False, False, False),
        (inside("encoder"), True, True, False),
        (inside("encoder.0"), True, False, False),
        (inside(""), True, True, False),
        (inside("head"), False, False, False),
        (module_type("Conv2d"), True, True, False),
        (module_type(nn.Conv2d), True, True, False),
        (module_type("Conv*"), True, True, False),
        (module_type("Sequential"), False, False, False),
        (module_type("conv2d"), False, False, False),
    ],
    ids=stable,
)
def test_modules(predicate: PredicateBase, op_kept: bool, exit_kept: bool, enter_kept: bool) -> None:
    stack = (NET, ENCODER, CONV)
    for given, kept in [
        ("op", op_kept),
        ("input", op_kept),
        ("buffer", op_kept),
        ("module_exit", exit_kept),
        ("module_enter", enter_kept),
    ]:
        ctx = event(given, stack=stack)
        assert predicate(ctx) is kept
        assert predicate.narrow(site_of(ctx)) is (ALWAYS if kept else NEVER)


@pytest.mark.parametrize("predicate", [module("**"), module(""), module_type("*"), inside("**")], ids=stable)
def test_an_op_outside_any_module_is_in_none(predicate: PredicateBase) -> None:
    assert predicate(event("op", stack=())) is False


def test_the_root_has_an_empty_address() -> None:
    assert module("")(event("module_exit", stack=(NET,))) is True
    assert inside("")(event("module_exit", stack=(NET,))) is False
    assert inside("")(event("module_exit", stack=(NET, ENCODER))) is True


@pytest.mark.parametrize("address", ["trunk", "actor.trunk", "critic.trunk", "critic.*"])
def test_a_shared_module_is_known_under_all_its_addresses(address: str) -> None:
    stack = (NET, ("trunk", "Linear", "actor.trunk", "critic.trunk"))
    assert module(address)(event("module_exit", stack=stack)) is True
    assert module_input(address)(event("module_enter", stack=stack)) is True
    assert inside(address)(event("op", stack=(*stack, ("trunk.0", "ReLU")))) is True
    assert module("critic")(event("module_exit", stack=stack)) is False


def test_an_address_with_glob_characters_matches_itself() -> None:
    assert module("heads.[a]")(event("op", stack=(("heads.[a]", "Linear"),))) is True
    assert module("heads.[a]")(event("op", stack=(("heads.a", "Linear"),))) is True


@pytest.mark.parametrize(
    ("predicate", "recent", "kept"),
    [
        (after("conv2d"), ("conv2d",), True),
        (after("conv2d"), ("conv2d", "add"), False),
        (after("conv2d", within=2), ("conv2d", "add"), True),
        (after("conv2d", within=2), ("conv2d", "add", "add"), False),
        (after("conv2d", within=8), ("conv2d", "add", "add"), True),
        (after("conv*", "layer_norm"), ("layernorm",), True),
        (after("*"), (), False),
    ],
    ids=stable,
)
def test_after(predicate: PredicateBase, recent: tuple[str, ...], kept: bool) -> None:
    for given in ("op", "module_exit"):
        assert predicate(event(given, recent=recent)) is kept


@pytest.mark.parametrize(
    ("predicate", "matching", "other"),
    [
        (shape(2, 3), [(2, 3)], [(3, 2), (2,), (2, 3, 1), ()]),
        (shape(None, 64), [(1, 64), (8, 64)], [(64,), (1, 8, 64), (64, 1)]),
        (shape(..., 64), [(64,), (1, 64), (2, 3, 64)], [(), (64, 1)]),
        (shape(64, ...), [(64,), (64, 1, 2)], [(), (1, 64)]),
        (shape(2, ..., 3), [(2, 3), (2, 9, 9, 3)], [(2,), (3,), (3, 2), ()]),
        (shape(2, ..., 2), [(2, 2)], [(2,)]),
        (shape(...), [(), (1,), (1, 2)], []),
        (shape(), [()], [(1,)]),
        (shape(0, None), [(0, 5)], [(1, 5)]),
    ],
    ids=stable,
)
def test_shape(predicate: PredicateBase, matching: list[tuple[int, ...]], other: list[tuple[int, ...]]) -> None:
    assert [predicate(event(shape=dims)) for dims in matching] == [True] * len(matching)
    assert [predicate(event(shape=dims)) for dims in other] == [False] * len(other)


def test_dtype() -> None:
    wanted = dtype(torch.float32, "bfloat16", "torch.int64")
    assert wanted == dtype("float32", "bfloat16", "long")
    assert [wanted(event(dtype=name)) for name in ("float32", "bfloat16", "int64", "float16")] == [
        *(True, True, True, False)
    ]


def test_every_and_first_count_the_passes_of_an_entry() -> None:
    kept = [n for n in range(25) if every(10)(event(entry_pass=n))]
    assert kept == [0, 10, 20]
    assert [n for n in range(25) if first(3)(event(entry_pass=n))] == [0, 1, 2]
    assert all(every(1)(event(entry_pass=n)) for n in range(5))


def test_phase_and_entry_and_grad() -> None:
    assert phase("rollout", "eval*")(event(phase="evaluate")) is True
    assert phase("rollout")(event(phase="train")) is False
    assert entry("actor.*")(event(entry="actor.0")) is True
    assert entry("actor.*")(event(entry="actor.0.1")) is False
    assert entry("actor.**")(event(entry="actor.0.1")) is True
    assert entry("actor.*")(event(entry="critic")) is False
    assert grad_enabled()(event(grad=True)) is True
    assert grad_enabled()(event(grad=False)) is False


def test_structural_sees_the_structure_of_an_event() -> None:
    seen = []

    def look(ctx: RecordContext) -> bool:
        frame = ctx.module_stack[-1]
        seen.append((ctx.kind, ctx.site, ctx.layer_type, frame.module_address, frame.module_type))
        seen.append((ctx.func_name, ctx.module_address, ctx.module_type, ctx.output_index))
        return ctx.input_output_address == "" and ctx.is_bottom_level_func

    ctx = event("op", "relu", stack=(NET, CONV))
    assert structural(look)(ctx) is True
    assert structural(look).narrow(site_of(ctx)) is ALWAYS
    assert seen[:2] == seen[2:]
    assert seen[0] == ("op", "encoder.0/relu", "relu", "encoder.0", "Conv2d")
