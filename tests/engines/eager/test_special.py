"""Modules with a fused path run on it, unless something inside of them is kept."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastrec import FastrecWarning, Recorder, record
from fastrec._errors import UnsupportedModelError
from fastrec.graph import log_forward_pass
from fastrec.predicates import inside, module_input, module_type, op
from tests.contracts.engine import EVERYTHING
from tests.helpers.naive import same_bits

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

WARNING = re.escape("has a kept site inside, so it runs without its fused kernel while it is recorded")


def layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options).eval()


def encoder() -> nn.TransformerEncoder:
    return nn.TransformerEncoder(layer(), 2).eval()


def attention() -> nn.MultiheadAttention:
    return nn.MultiheadAttention(8, 2, batch_first=True).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 8)


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


MASK = torch.tensor([[False, False, True], [False, True, True]])
CALLS: dict[str, Any] = {
    "layer": (layer, lambda m, x: m(x)),
    "layer with a mask": (layer, lambda m, x: m(x, src_key_padding_mask=MASK)),
    "encoder": (encoder, lambda m, x: m(x)),
    "encoder with a mask": (encoder, lambda m, x: m(x, src_key_padding_mask=MASK)),
    "attention": (attention, lambda m, x: m(x, x, x, need_weights=False)[0]),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "keep", [{"keep_op": op("linear") & ~inside("model")}, {"keep_module": ["model", "head"]}, {"keep_op": op("tanh")}]
)
def test_the_output_is_the_fused_one_where_nothing_inside_is_kept(name: str, keep: Any, x: Tensor) -> None:
    make, call = CALLS[name]
    model, head = make(), nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    expected = call(model, x)
    with Recorder(nn.ModuleDict({"model": model, "head": head}), **keep) as rec:
        out = call(model, x)
        head(out)
    assert same_bits(out, expected)
    found = [record.ctx.site for record in rec.recording]
    assert found[-1] in ("head.0/linear", "head", "head.1/tanh")
    if "keep_module" in keep:
        assert same_bits(rec.recording[0].activation, expected)


def test_an_opaque_predicate_could_keep_anything_inside(x: Tensor) -> None:
    with pytest.warns(FastrecWarning, match=WARNING):
        record(layer(), x, keep_op=lambda ctx: False)


@pytest.mark.parametrize(
    ("make", "keep", "sites"),
    [
        (layer, {"keep_module": "linear1"}, ["linear1"]),
        (layer, {"keep_module": module_input("self_attn")}, ["self_attn:in[0]", "self_attn:in[1]", "self_attn:in[2]"]),
        (encoder, {"keep_module": "layers.1.linear1"}, ["layers.1.linear1"]),
        (encoder, {"keep_module": inside("layers.1") & module_type("MultiheadAttention")}, ["layers.1.self_attn[0]"]),
        (encoder, {"keep_op": op("relu") & inside("layers.0")}, ["layers.0/relu"]),
        (lambda: layer(activation=F.silu), {"keep_op": "silu"}, ["/silu"]),
        (lambda: layer(activation=nn.SiLU()), {"keep_op": "silu"}, ["activation/silu"]),
        (lambda: layer(activation=lambda x: x.sinc()), {"keep_op": "sinc"}, ["/sinc"]),
        (attention, {"keep_op": "scaleddot*"}, ["/multi_head_attention_forward/scaleddotproductattention"]),
    ],
)
def test_what_is_kept_inside_is_recorded_with_a_warning(make: Any, keep: Any, sites: list[str], x: Tensor) -> None:
    model = make()
    args = (x, x, x, None, False) if isinstance(model, nn.MultiheadAttention) else (x,)
    expected = model(*args)
    for wrap in (False, True):
        root = {"root": model} if wrap else model
        keep_here = {k: f"root.{v}" if wrap and k == "keep_module" else v for k, v in keep.items()}
        if wrap and not all(isinstance(value, str) for value in keep.values()):
            continue
        with pytest.warns(FastrecWarning, match=WARNING), Recorder(root, **keep_here) as rec:
            out = model(*args)
        found = [record.ctx.site for record in rec.recording]
        assert [site.removeprefix("root").removeprefix(".") for site in found] == sites
        left, right = (o[0] if isinstance(o, tuple) else o for o in (out, expected))
        assert torch.allclose(left, right, atol=1e-6)


NUMBERS = torch.arange(9.0).reshape(3, 3) / 4
ROW = torch.tensor([[False] * 3, [True] * 3, [False] * 3])
DIFFERING: dict[str, Any] = {
    "padded encoder": (encoder, lambda m, x: m(x, src_key_padding_mask=MASK)),
    "padded encoder with a norm": (
        lambda: nn.TransformerEncoder(layer(), 1, norm=nn.LayerNorm(8)).eval(),
        lambda m, x: m(x, None, MASK),
    ),
    "masked row in a layer": (layer, lambda m, x: m(x, ROW)),
    "numbers as a mask of a layer": (layer, lambda m, x: m(x, src_mask=NUMBERS)),
    "masked row in an attention": (attention, lambda m, x: m(x, x, x, need_weights=False, attn_mask=ROW)[0]),
    "nested": (encoder, lambda m, x: m(torch.nested.nested_tensor([x[0], x[1, :2]])).to_padded_tensor(0.0)),
}


@pytest.mark.parametrize("name", DIFFERING)
@pytest.mark.parametrize("engine", ["eager", "static"])
@pytest.mark.parametrize("keep", [{"keep_op": True}, {"keep_module": ["**linear1", "**out_proj", "model"]}])
@pytest.mark.filterwarnings("ignore:.*has a kept site inside", "ignore:keep_module")
def test_a_call_that_would_compute_something_else_is_refused(name: str, engine: str, keep: Any, x: Tensor) -> None:
    make, call = DIFFERING[name]
    model = make()
    root = nn.ModuleDict({"model": model, "head": nn.Linear(8, 8)})
    expected = call(model, x)
    if name.endswith("attention") and "keep_module" in keep:
        return  # its out_proj is not called as a module
    with Recorder(root, engine=engine, **keep) as rec:
        with pytest.raises(UnsupportedModelError, match="Keep 'model' itself .* gradients enabled, .* allow_unfused"):
            call(model, x)
        assert rec.recording.n_passes == 0
    if name == "nested":  # can be kept in no way
        return
    # Each way that the error names.
    with Recorder(root, engine=engine, keep_module="model") as rec:
        assert all(torch.allclose(call(model, x), expected, equal_nan=True) for _ in range(4))
    with torch.enable_grad():
        unfused = call(model, x)
        with Recorder(root, engine=engine, **keep) as rec:
            assert same_bits(call(model, x), unfused)
    with Recorder(root, engine=engine, allow_unfused=True, **keep) as rec:
        assert all(same_bits(call(model, x), unfused) for _ in range(4))
    assert rec.recording.n_passes == 4


@pytest.mark.parametrize("engine", ["eager", "static"])
def test_a_mask_that_changes_nothing_more_is_no_obstacle(engine: str, x: Tensor) -> None:
    calls = []
    model = encoder()
    model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(FastrecWarning, match=WARNING), Recorder(model, keep_op="relu", engine=engine) as rec:
        for _ in range(4):
            out = model(x, src_key_padding_mask=torch.zeros(2, 3, dtype=torch.bool))
    assert torch.allclose(out, model(x), atol=1e-6)
    assert len(rec.recording["layers.1/relu"]) == 4
    assert len(calls) == 5, "a hook ran twice"


def test_a_graph_of_such_a_call_is_refused(x: Tensor) -> None:
    with pytest.raises(UnsupportedModelError, match="padding_mask its output would differ"):
        log_forward_pass(encoder(), (x, None, MASK))
    with torch.enable_grad():
        assert log_forward_pass(encoder(), (x, None, MASK)).output_layers


def test_a_module_in_training_or_with_gradients_runs_as_usual(x: Tensor) -> None:
    model = layer()
    with torch.enable_grad():
        assert [r.ctx.site for r in record(model, x, keep_op="relu")] == ["/relu"]
    model.train()
    assert [r.ctx.site for r in record(model, x, keep_module="linear1")] == ["linear1"]


def test_frozen_parameters_fuse_though_gradients_are_on(x: Tensor) -> None:
    model = layer().requires_grad_(False)
    with torch.enable_grad():
        expected = model(x)
        out, recording = record(model, x, keep_module="", return_output=True)
    assert same_bits(out, expected) and len(recording) == 1


def test_two_recorders_leave_the_fused_path_alone(x: Tensor) -> None:
    model = nn.Sequential(layer(), nn.Linear(8, 8))
    expected = model(x)
    keep = op("linear") & ~inside("0")
    with Recorder(model, keep_op=keep) as first, Recorder(model, keep_op=keep) as second:
        assert same_bits(model(x), expected)
        assert same_bits(model(x), expected)
    for rec in (first, second):
        assert [(r.ctx.label, r.ctx.op_index, r.ctx.event_index) for r in rec.recording] == 2 * [("linear_1", 0, 4)]


def test_what_comes_from_a_module_that_is_not_looked_into_has_it_as_parent(x: Tensor) -> None:
    model = nn.Sequential(layer(), nn.Linear(8, 8))
    recording = record(model, x, keep_op=op("linear") & ~inside("0"), keep_module="1", track_parents=True)
    assert [r.ctx.parent_labels for r in recording] == [("0:1",), ("linear_1",)]


def test_numbers_outside_are_the_same_whether_the_inside_is_seen(x: Tensor) -> None:
    model = nn.Sequential(layer(), nn.Linear(8, 8), nn.ReLU())
    with pytest.warns(FastrecWarning, match=WARNING):
        full = record(model, x, **EVERYTHING)
    part = record(model, x, keep_op=op("*") & ~inside("0"))
    known = {r.ctx.label: r.ctx for r in full}
    assert [r.ctx.label for r in part] == ["linear_1", "relu_1"]
    for r in part:
        other = known[r.ctx.label]
        assert (r.ctx.site, r.ctx.op_index, r.ctx.event_index) == (other.site, other.op_index, other.event_index)
        assert [e.label for e in r.ctx.recent_events] == [e.label for e in other.recent_events]


def test_a_user_mode_stays_in_place_around_a_fused_module(x: Tensor) -> None:
    model = nn.Sequential(layer(), nn.Linear(8, 8))
    seen: list[str] = []

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, x: Tensor) -> Tensor:
            with Spy():
                return self.body(x)

    inner = Inner()
    expected, before = inner(x), list(seen)
    seen.clear()
    out, recording = record(inner, x, keep_op=op("linear") & ~inside("body.0"), return_output=True)
    assert same_bits(out, expected)
    assert [name for name in seen if name in before] == before
    assert [r.ctx.site for r in recording] == ["body.1/linear"]
