"""Events made by hand, and random predicates to ask about them."""

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st

from fastrec.events.capture import CaptureSpec
from fastrec.events.context import RecordContext
from fastrec.events.sites import Catalog, Frame, PassInfo, RecordMeta, Site
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

KINDS = ["op", "module_enter", "module_exit", "input", "buffer"]
LAYER_TYPES = ["relu", "conv2d", "add", "layernorm"]
ADDRESSES = ["", "encoder", "encoder.0", "head"]
STACKS = [
    (),
    (("", "Net"),),
    (("", "Net"), ("encoder", "Sequential")),
    (("", "Net"), ("encoder", "Sequential"), ("encoder.0", "Conv2d")),
    (("", "Net"), ("head", "Linear", "value_head", "shared.head")),
]


def event(  # noqa: PLR0913
    kind: str = "op",
    layer_type: str = "relu",
    *,
    stack: Sequence[tuple[str, ...]] = (("", "Net"),),
    recent: Sequence[str] = (),
    shape: tuple[int, ...] = (2, 3),
    dtype: str = "float32",
    entry: str = "",
    entry_pass: int = 0,
    phase: str = "",
    grad: bool = True,
) -> RecordContext:
    """A context in which everything that no argument tells has some plain value."""
    catalog = Catalog()
    address = stack[-1][0] if stack else ""
    frames = tuple(Frame(address, name, tuple(aliases)) for address, name, *aliases in stack)
    number = catalog.sites.add(Site(f"{address}/{layer_type}", kind, layer_type, layer_type, frames))
    before = []
    for place, name in enumerate(recent):
        site = catalog.sites.add(Site(f"before/{name}", "op", name, name, frames))
        before.append((site, place + 1, f"{name}_{place + 1}"))
    meta = RecordMeta(
        site=number,
        label=f"{layer_type}_1",
        number=1,
        op_index=len(before),
        event_index=len(before),
        module_pass=1,
        stack_passes=(1,) * len(frames),
        shape=shape,
        dtype=dtype,
        device="cpu",
        requires_grad=False,
        spec=0,
        recent_events=tuple(before),
        recent_ops=tuple(before),
    )
    info = PassInfo(entry_pass, catalog.entries.add(entry), entry_pass, catalog.phases.add(phase), grad, 0.0)
    return RecordContext(catalog, catalog.sites[meta.site], meta, info, 0.0, None)


def site_of(ctx: RecordContext) -> Site:
    return ctx._site


events = st.builds(
    event,
    st.sampled_from(KINDS),
    st.sampled_from(LAYER_TYPES),
    stack=st.sampled_from(STACKS),
    recent=st.lists(st.sampled_from(LAYER_TYPES), max_size=3),
    shape=st.sampled_from([(), (2,), (2, 3), (1, 2, 3)]),
    dtype=st.sampled_from(["float32", "bfloat16", "int64"]),
    entry=st.sampled_from(["", "actor", "actor.0"]),
    entry_pass=st.integers(0, 12),
    phase=st.sampled_from(["", "rollout", "train"]),
    grad=st.booleans(),
)


def on_even_passes(ctx: RecordContext) -> bool:
    return ctx.entry_pass % 2 == 0


def on_wide_values(ctx: RecordContext) -> np.bool_:
    return np.prod(ctx.tensor_shape) > 2


def as_metadata(ctx: RecordContext) -> CaptureSpec | None:
    return CaptureSpec(save_activation=False) if ctx.kind == "op" else None


def as_an_op_would(ctx: RecordContext) -> object:
    return op("relu").with_(dtype=torch.float16).decide(ctx)


def in_a_module(ctx: RecordContext) -> bool:
    return any(frame.module_type == "Conv2d" for frame in ctx.module_stack)


def short_when_op(ctx: RecordContext) -> dict[str, object] | bool:
    return {"dtype": torch.float16} if ctx.layer_type == "add" else ctx.kind == "op"


changes = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([torch.float16, torch.bfloat16]),
        "device": st.sampled_from(["cpu", torch.device("cpu")]),
        "keep_grad": st.booleans(),
    },
)

_layer_types = st.lists(st.sampled_from([*LAYER_TYPES, "re*", "conv?d", "layer_norm"]), min_size=1, max_size=2)
_addresses = st.lists(
    st.sampled_from([*ADDRESSES, "encoder*", "*", "**", "h[ae]ad", "shared*"]), min_size=1, max_size=2
)
_counts = st.integers(1, 4)

printed_leaves = st.one_of(
    st.sampled_from([ALWAYS, NEVER, grad_enabled()]),
    st.builds(lambda globs: op(*globs), _layer_types),
    st.builds(lambda kinds: kind(*kinds), st.lists(st.sampled_from(KINDS), min_size=1)),
    st.builds(lambda globs, within: after(*globs, within=within), _layer_types, _counts),
    st.builds(lambda globs: module(*globs), _addresses),
    st.builds(lambda globs: module_input(*globs), _addresses),
    st.builds(lambda globs: inside(*globs), _addresses),
    st.builds(module_type, st.sampled_from(["Net", "Conv*", torch.nn.Linear])),
    st.builds(lambda dims: shape(*dims), st.lists(st.sampled_from([2, 3, None]), max_size=3)),
    st.builds(lambda dims: shape(*dims[:1], ..., *dims[1:]), st.lists(st.sampled_from([2, 3]), max_size=2)),
    st.builds(dtype, st.sampled_from([torch.float32, "bfloat16", torch.int64])),
    st.builds(every, _counts),
    st.builds(first, _counts),
    st.builds(phase, st.sampled_from(["", "rollout", "t*"])),
    st.builds(entry, st.sampled_from(["", "actor", "actor*"])),
)
function_leaves = st.sampled_from(
    [
        *(NEVER | f for f in (on_even_passes, on_wide_values, as_metadata, as_an_op_would)),
        structural(in_a_module),
        structural(short_when_op),
        structural(as_metadata),
    ]
)


def joined(leaves: st.SearchStrategy) -> st.SearchStrategy:
    """Random expressions over some leaves."""
    return st.recursive(
        leaves,
        lambda parts: st.one_of(
            st.builds(lambda a, b: a & b, parts, parts),
            st.builds(lambda a, b: a | b, parts, parts),
            st.builds(lambda a: ~a, parts),
            st.builds(lambda a, fields: a.with_(**fields), parts, changes),
        ),
        max_leaves=6,
    )


printed_predicates = joined(printed_leaves)
predicates = joined(printed_leaves | function_leaves)
