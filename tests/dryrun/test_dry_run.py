"""A dry run shows what a recorder would do, and leaves everything as it was."""

import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec import CaptureSpec, RecordContext, Recorder, dry_run
from fastrec._errors import ContextFieldError, OptionError, PredicateError, UnsupportedModelError
from fastrec.graph import log_forward_pass, preview
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
from tests.helpers.models import DYNAMIC, MODELS, mlp
from tests.helpers.stable_ids import stable

FIELDS = {name for name, field in vars(RecordContext).items() if isinstance(field, property)}
ALL_MODELS = {**MODELS, **DYNAMIC}
CONTEXT_ONLY = CaptureSpec(save_activation=False)


def always(ctx: RecordContext) -> bool:
    return True


def fields_of(ctx: RecordContext) -> dict[str, Any]:
    """All fields but the time, which no two runs have in common."""
    fields: dict[str, Any] = {}
    for name in FIELDS - {"time_since_pass_start"}:
        try:
            fields[name] = getattr(ctx, name)
        except ContextFieldError as error:
            fields[name] = str(error)
    return fields


def assert_same_answers(left: fastrec.DryRun, right: fastrec.DryRun) -> None:
    assert [fields_of(ctx) for ctx in left.contexts] == [fields_of(ctx) for ctx in right.contexts]
    assert len(left.decisions) == len(right.decisions)
    for first_, second in zip(left.decisions, right.decisions, strict=True):
        assert getattr(first_, "error", first_) == getattr(second, "error", second)
    assert left.sizes == right.sizes
    assert left.tree() == right.tree()
    assert left.summary() == right.summary()
    assert left.halted == right.halted


@pytest.mark.parametrize("track_parents", [False, True])
@pytest.mark.parametrize("sources", [False, True])
@pytest.mark.parametrize("name", ALL_MODELS)
def test_contexts_are_those_of_a_recorder(name: str, sources: bool, track_parents: bool) -> None:
    make, input_shape = ALL_MODELS[name]
    model, x = make().train(), torch.randn(input_shape)
    options: dict[str, Any] = {
        "keep_op": always,
        "keep_module": always,
        "capture": CONTEXT_ONLY,
        "include_source_events": sources,
        "track_parents": track_parents,
    }
    with torch.no_grad():
        dry = dry_run(model, x, **options)
        recorded = fastrec.record(model, x, **options)
    assert len(recorded) > 5
    assert [fields_of(ctx) for ctx in dry.kept] == [fields_of(record.ctx) for record in recorded]


@pytest.mark.parametrize(
    "capture",
    [
        CaptureSpec(),
        CaptureSpec(dtype=torch.bfloat16),
        CaptureSpec(save_activation=False),
        CaptureSpec(transform=lambda x: x.flatten()[:3]),
        CaptureSpec(transform=lambda x: x.double().flatten()[:1], save_raw=False, dtype=torch.float16),
        CaptureSpec(keep_grad=True, dtype=torch.float64),
    ],
    ids=stable,
)
@pytest.mark.parametrize("name", ["mlp", "attention", "encoder"])
def test_sizes_are_the_bytes_that_a_recorder_keeps(name: str, capture: CaptureSpec) -> None:
    make, input_shape = MODELS[name]
    model, x = make(), torch.randn(input_shape)
    dry = dry_run(model, x, keep_op=True, keep_module=True, capture=capture)
    recorded = fastrec.record(model, x, keep_op=True, keep_module=True, capture=capture)
    kept = [size for size, decision in zip(dry.sizes, dry.decisions, strict=True) if decision is not None]
    parts = [(record.activation, record.transformed_activation) for record in recorded]
    assert kept == [sum(part.nbytes for part in both if part is not None) for both in parts]
    assert [ctx.site for ctx in dry.kept] == [record.ctx.site for record in recorded]
    assert {*dry.decisions} == {None, capture}


def test_train_mode_keeps_gradients_where_there_can_be_some() -> None:
    class Best(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.max(dim=1).values

    options: dict[str, Any] = {"keep_op": True, "train_mode": True}
    x = torch.randn(2, 3, requires_grad=True)
    dry = dry_run(Best(), x, **options)
    specs = [record.spec for record in fastrec.record(Best(), x, **options)]
    assert [decision for decision in dry.decisions if decision is not None] == specs
    assert {spec.keep_grad for spec in specs} == {True, False}


PREDICATES: list[tuple[Any, Any]] = [
    (None, None),
    (True, True),
    ("relu", None),
    (["lin*", "tanh"], "*"),
    (op("relu") & after("linear", "add", within=3), module_type("Linear")),
    (op("*").with_(dtype=torch.float16) & every(10), module_input("**")),
    (shape(..., 4) | dtype(torch.bool), module("0") & ~grad_enabled()),
    (first(3) & entry("*"), inside("**") & kind("module_exit")),
    (phase("rollout"), phase("")),
    (structural(lambda ctx: ctx.layer_type == "relu"), lambda ctx: ctx.kind == "module_enter"),
    (lambda ctx: {"transform": torch.sum} if ctx.op_index == 1 else None, None),
    (lambda ctx: ctx.no_such_field, lambda ctx: 3),
]


@pytest.mark.filterwarnings("ignore:keep_:fastrec.FastrecWarning")  # not every model has what every predicate keeps
@pytest.mark.parametrize(("keep_op", "keep_module"), PREDICATES, ids=stable)
@pytest.mark.parametrize("name", ["mlp", "residual", "attention"])
def test_asking_again_is_like_running_again(name: str, keep_op: Any, keep_module: Any) -> None:
    make, input_shape = MODELS[name]
    model, x = make().eval(), torch.randn(input_shape)
    with torch.no_grad():
        blank = dry_run(model, x)
        fresh = dry_run(model, x, keep_op=keep_op, keep_module=keep_module)
    again = blank.repredicate(keep_op=keep_op, keep_module=keep_module)
    assert_same_answers(again, fresh)
    assert_same_answers(again.repredicate(), blank)


def test_asking_again_runs_nothing_and_checks_predicates() -> None:
    calls = []
    model = mlp()
    model.register_forward_hook(lambda *args: calls.append(1))
    dry = dry_run(model, torch.zeros(1, 4))
    dry.repredicate(keep_op="tanh")
    assert calls == [1]
    with pytest.raises(PredicateError, match="keep_op got 3"):
        dry.repredicate(keep_op=3)


def test_without_a_predicate_all_is_shown_and_nothing_kept() -> None:
    dry = dry_run(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), torch.zeros(3, 4))
    assert {ctx.kind for ctx in dry.contexts} == {"op", "module_enter", "module_exit", "input", "buffer"}
    assert {*dry.decisions} == {None}
    assert {*dry.sizes} == {0}
    assert dry.kept == ()


def test_inputs_and_buffers_are_only_kept_where_they_are_events() -> None:
    model, x = nn.BatchNorm1d(4).eval(), torch.zeros(3, 4)
    assert dry_run(model, x, keep_op=kind("input", "buffer")).kept == ()
    dry = dry_run(model, x, keep_op=kind("input", "buffer"), include_source_events=True)
    assert [ctx.site for ctx in dry.kept] == [":in[0]", "running_mean:buffer", "running_var:buffer"]


def test_an_error_of_a_predicate_stands_at_its_event() -> None:
    def fails(ctx: RecordContext) -> bool:
        if ctx.layer_type == "tanh":
            raise ValueError("no tanh today")
        return True

    dry = dry_run(mlp(), torch.zeros(1, 4), keep_op=fails)
    failed = [(ctx.site, d) for ctx, d in zip(dry.contexts, dry.decisions, strict=True) if hasattr(d, "error")]
    assert [(site, d.error, d.context.site) for site, d in failed] == [
        ("1/tanh", "ValueError: no tanh today", "1/tanh")
    ]
    assert [ctx.site for ctx in dry.kept] == ["0/linear", "2/linear", "3/relu", "4/linear"]
    assert "✗ ValueError: no tanh today" in dry.tree()
    assert "errors at 1 site, the first at 1/tanh: ValueError: no tanh today" in dry.summary()
    assert repr(dry).endswith("4 kept, 104 B per pass, 1 error>")


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        (CaptureSpec(keep_grad=True), "GradientError: .*computed under torch.no_grad"),
        (CaptureSpec(save_gradient=True), "GradientError: .*computed under torch.no_grad"),
        (CaptureSpec(transform=lambda x: x @ torch.zeros(99, 1)), "RuntimeError: .*mat1 and mat2"),
        (CaptureSpec(transform=lambda x: None), "OptionError: the transform .*has to return a tensor"),
    ],
    ids=["keep_grad", "save_gradient", "raises", "no tensor"],
)
def test_what_a_capture_can_not_do_stands_at_its_event(capture: CaptureSpec, message: str) -> None:
    with torch.no_grad():
        dry = dry_run(mlp(), torch.zeros(1, 4), keep_op="tanh", capture=capture)
        (failure,) = [decision for decision in dry.decisions if decision is not None]
    assert dry.kept == ()
    assert failure.context.label == "tanh_1"
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(failure.error)
    assert_same_answers(dry.repredicate(keep_op="tanh"), dry)


def test_values_that_can_not_be_copied_are_shown_with_the_reason() -> None:
    class Sparse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(lambda row: row.sin())(x.to_sparse().to_dense())

    dry = dry_run(Sparse(), torch.eye(3), keep_op="*")
    errors = {d.context.layer_type: d.error for d in dry.decisions if d is not None and hasattr(d, "error")}
    assert errors["tosparse"].startswith("UnsupportedTensorError: a tensor of layout torch.sparse_coo")
    assert "functorch transform" in errors["sin"]


def test_nested_tensors_do_not_stop_a_dry_run() -> None:
    class Nests(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nested.nested_tensor([x, x[:1]], layout=torch.jagged).sin().to_padded_tensor(0.0)

    dry = dry_run(Nests(), torch.ones(2, 3), keep_op="sin")
    (failure,) = [decision for decision in dry.decisions if decision is not None]
    assert "can't be recorded" in failure.error


@pytest.mark.parametrize("halting", [{"halt": op("tanh"), "keep_op": True}, {"keep_op": "stopping"}])
def test_after_a_halt_all_is_shown_and_nothing_kept(halting: dict[str, Any]) -> None:
    def stopping(ctx: RecordContext) -> bool:
        if ctx.layer_type == "relu":
            fastrec.halt("enough")
        return True

    options = halting if "halt" in halting else {"keep_op": stopping}
    dry = dry_run(mlp(), torch.zeros(1, 4), **options)
    recorded = fastrec.record(mlp(), torch.zeros(1, 4), **options)
    assert [ctx.label for ctx in dry.kept] == [record.ctx.label for record in recorded]
    assert dry.halted.keys() == recorded.halted.keys() == {0}
    assert dry.halted[0] in ("op('tanh') matched 'tanh_1' (1/tanh)", "enough")
    assert dry.contexts[-1].site == ":out"
    assert f"halted: {dry.halted[0]}" in dry.tree()
    assert_same_answers(dry.repredicate(keep_op=options["keep_op"]), dry)


def test_a_model_is_afterwards_as_it_was() -> None:
    class Messy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("absent", None)

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            self.frozen.requires_grad_(True)
            self.norm.weight.requires_grad_(False)
            out: Tensor = nn.functional.dropout(self.frozen(self.norm(x)), 0.5)
            self.eval()
            out.sum().backward()
            return out + random.random() + np.random.rand()

    model, x = Messy(), torch.randn(8, 4)
    model.frozen.weight.grad = torch.full((4, 4), 7.0)
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    parameters = {name: (p, p.requires_grad, p.grad) for name, p in model.named_parameters()}
    attributes = set(vars(model))
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()

    dry = dry_run(model, x, keep_op=True)

    assert len(dry.kept) > 3
    assert model.training and model.norm.training
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])
    for name, parameter in model.named_parameters():
        same, requires_grad, grad = parameters[name]
        assert parameter is same and parameter.requires_grad == requires_grad and parameter.grad is grad
    assert torch.equal(model.frozen.weight.grad, torch.full((4, 4), 7.0))
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    assert set(vars(model)) == attributes
    assert nn.Module.__call__ is nn.Module._wrapped_call_impl


def test_a_graph_from_before_can_still_be_run_backward() -> None:
    model, x = nn.BatchNorm1d(4), torch.randn(8, 4)
    loss = (model(x) * model.running_mean).sum()
    dry_run(model, x)
    loss.backward()


def test_an_error_of_the_model_comes_through_and_leaves_nothing() -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            self.norm(x)
            raise ArithmeticError("as it happens")

    model = Breaks()
    for run in ({"input_args": torch.randn(3, 4)}, {"call": lambda: model(torch.randn(3, 4))}):
        with pytest.raises(ArithmeticError, match="as it happens"):
            dry_run(model, **run)
        assert model.norm.num_batches_tracked == 0
        assert nn.Module.__call__ is nn.Module._wrapped_call_impl


def test_a_call_makes_the_passes_that_a_recorder_makes() -> None:
    roots = {"actor": nn.Linear(4, 2), "critic": nn.Linear(4, 1)}

    def act() -> Tensor:
        x = torch.ones(1, 4)
        return roots["actor"](x).softmax(-1) * roots["critic"](x) + roots["critic"](x)

    options = {"keep_op": entry("critic") & every(2), "keep_module": entry("actor"), "engine": "eager"}
    dry = dry_run(roots, call=act, **options)
    with Recorder(roots, **options) as rec:
        act()

    def facts(ctx: Any) -> Any:
        return ctx.site, ctx.label, ctx.entry, ctx.entry_pass, ctx.pass_index

    assert [facts(ctx) for ctx in dry.kept] == [facts(record.ctx) for record in rec.recording]
    assert {(ctx.entry, ctx.entry_pass, ctx.pass_index) for ctx in dry.contexts} == {
        ("actor", 0, 0),
        ("critic", 0, 1),
        ("critic", 1, 2),
    }
    assert dry.summary() and dry.timeline_html() and dry.tree()
    assert repr(dry).startswith("<DryRun of Linear, Linear: ")


def test_predicates_of_the_pass_see_this_pass() -> None:
    model, x = nn.Linear(4, 2), torch.ones(1, 4)
    with torch.no_grad():
        quiet = dry_run(model, x, keep_op=grad_enabled())
    assert quiet.kept == ()
    assert len(dry_run(model, x, keep_op=grad_enabled() & every(10) & first(1)).kept) == 1


def test_fused_modules_are_opened_without_a_warning() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.no_grad():
        dry = dry_run(layer, torch.randn(1, 3, 8))
    assert {"self_attn/multi_head_attention_forward/linear", "norm1/layernorm"} <= {ctx.site for ctx in dry.contexts}


def test_random_seed_is_set_for_the_pass() -> None:
    seen = []

    class Draws(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.rand(()))
            return x

    state = torch.get_rng_state()
    for _ in range(2):
        dry_run(Draws(), torch.zeros(1), random_seed=3)
    assert seen[0] == seen[1]
    assert torch.equal(torch.get_rng_state(), state)


def test_an_open_recorder_is_not_disturbed() -> None:
    model, other, x = mlp(), mlp(), torch.ones(1, 4)
    with fastrec.Recorder(model, keep_op="tanh") as rec:
        model(x)
        dry = dry_run(other, x, keep_op="tanh")
        model(x)
    assert rec.recording.n_records == 2
    assert len(dry.kept) == 1


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: dry_run(mlp()), OptionError, "give either input_args or input_kwargs, or call="),
        (lambda: dry_run(mlp(), 1, call=print), OptionError, "give either input_args or input_kwargs, or call="),
        (lambda: dry_run(mlp(), 1, keep_ops=True), OptionError, "there is no option 'keep_ops'; did you mean"),
        (lambda: dry_run(mlp(), 1, history_size=-1), OptionError, "history_size=-1: give a whole number"),
        (lambda: dry_run(mlp(), 1, keep_op=after("relu", within=9)), OptionError, "give history_size=9"),
        (lambda: dry_run(mlp(), 1, keep_op=3), PredicateError, "keep_op got 3"),
        (lambda: dry_run(len, 1), UnsupportedModelError, "not a torch.nn.Module"),
        (lambda: dry_run({"a": mlp(), "b": mlp()}, 1), OptionError, "several roots .*run them with call="),
    ],
)
def test_wrong_input_is_refused_as_by_a_recorder(run: Callable[[], Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        run()


def test_a_dry_run_is_drawn_where_no_graph_was_loaded() -> None:
    code = (
        "import torch, fastrec; dry = fastrec.dry_run(torch.nn.Tanh(), torch.zeros(2), keep_op=True)\n"
        "print([node.id for node in dry.drawing().nodes if node.mark and node.mark.nbytes])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("['tanh_1']\n", "")


def test_a_warning_about_names_points_at_the_line_of_the_user() -> None:
    model, x = nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dry = dry_run(model, x, keep_op="linaer")
        dry.repredicate(keep_module="1")
        preview(model, x, keep_op="linaer")
        log_forward_pass(model, x).preview(x, keep_op="linaer")
    assert [warning.filename for warning in caught] == [__file__] * 4
