"""A preview shows what a recorder then keeps: every site, every byte, on the picture, in the text and on the page."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec._errors import OptionError
from fastrec.graph import get_model_metadata, load_history, log_forward_pass, preview
from fastrec.graph.draw.data import page_data
from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.rules import FAILED, KEPT, UNREACHABLE, WHITE
from fastrec.graph.draw.view import opening_at, view_of
from fastrec.predicates import after, every, inside, kind, module, module_input, module_type, op, shape
from tests.graph.draw.dot_graph import read_dot
from tests.graph.draw.drawn_models import MODELS as DRAWN
from tests.helpers.models import DYNAMIC, MODELS, mlp
from tests.helpers.stable_ids import stable

PREDICATES: list[tuple[Any, Any]] = [
    (True, True),
    ("relu", None),
    (None, True),
    (["lin*", "tanh"], module_type("Linear", "Tanh")),
    (op("relu") & after("linear", "add", within=3), module_input("*")),
    (op("*").with_(dtype=torch.float16) & every(10), module("0") | inside("*")),
    (shape(..., 4) | kind("buffer") | kind("input"), None),
    (lambda ctx: {"transform": torch.sum} if ctx.op_index == 1 else None, lambda ctx: ctx.kind == "module_enter"),
]
CALLS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    **{name: (make, (torch.randn(size),), {}) for name, (make, size) in {**MODELS, **DYNAMIC}.items()},
    **{name: call for name, call in DRAWN.items() if name != "wild"},
}


def bytes_on(drawing: Drawing) -> int:
    """The bytes of all marks of a drawing, each on the node or the module that it is about."""
    marks = [thing.mark for things in (drawing.nodes, drawing.boxes) for thing in things]
    return sum(mark.nbytes for mark in marks if mark is not None)


@pytest.mark.parametrize("sources", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_a_picture_shows_the_sites_and_the_bytes_that_a_recorder_keeps(name: str, sources: bool) -> None:
    make, args, kwargs = CALLS[name]
    model = make().eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some predicates match nothing in some models
        blank = preview(model, args, kwargs, include_source_events=sources)
        for keep_op, keep_module in PREDICATES:
            options = {"keep_op": keep_op, "keep_module": keep_module, "include_source_events": sources}
            seen = blank.repredicate(keep_op=keep_op, keep_module=keep_module)
            records = list(fastrec.record(model, args, kwargs, **options))
            assert seen.kept == list(dict.fromkeys(record.ctx.site for record in records))
            values = [value for r in records for value in (r.activation, r.transformed_activation) if value is not None]
            kept = sum(value.nbytes for value in values)
            assert seen.nbytes == kept
            for mode in ("unrolled", "rolled"):
                assert bytes_on(seen.drawing(vis_mode=mode, buffers="all")) == kept
            assert bytes_on(seen.dry.drawing(buffers="all")) == kept


@pytest.mark.filterwarnings("ignore:keep_:fastrec.FastrecWarning")  # some predicates match nothing in this model
@pytest.mark.parametrize(("keep_op", "keep_module"), PREDICATES, ids=stable)
def test_closed_modules_and_the_page_show_the_same_bytes(keep_op: Any, keep_module: Any) -> None:
    make, args, kwargs = DRAWN["transformer"]
    seen = preview(make(), args, kwargs, keep_op=keep_op, keep_module=keep_module)
    drawing = seen.drawing(buffers="all")
    for depth in (1, 2, 3, None):
        view = view_of(drawing, opening_at(drawing, depth, folded=False))
        marks = [thing.mark for thing in (*view.nodes, *view.boxes) if thing.mark is not None]
        assert sum(mark.nbytes for mark in marks) == seen.nbytes
    marks = page_data(seen, buffers="all")["marks"]
    assert sum(marks["ops_bytes"]) + sum(marks["modules_bytes"]) == seen.nbytes


def test_verdicts_have_their_colours() -> None:
    def fails_at_tanh(ctx: Any) -> bool:
        if ctx.layer_type == "tanh":
            raise KeyError("mean")
        return bool(ctx.layer_type == "linear")

    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.BatchNorm1d(4)).eval()
    seen = preview(model, torch.ones(1, 4), keep_op=fails_at_tanh)
    nodes = read_dot(seen.draw(format="dot", buffers="all").text).nodes
    colours = {name: node["fillcolor"] for name, node in nodes.items()}
    assert colours == {
        "input_1": WHITE,  # keep_module could keep it
        "linear_1_1": KEPT,
        "tanh_1_2": FAILED,
        "buffer_1": UNREACHABLE,
        "buffer_2": UNREACHABLE,
        "batchnorm_1_3": WHITE,
        "output_1": WHITE,
    }
    assert (seen.kept, seen.failed, seen.unreachable) == (
        ["0/linear"],
        ["1/tanh"],
        [":in[0]", "2.running_mean:buffer", "2.running_var:buffer"],
    )
    assert {"2/batchnorm", "2", ":out"} < set(seen.rejected) and not {"0/linear", "1/tanh"} & set(seen.rejected)
    assert "fails: KeyError: 'mean'" in seen.draw(format="dot").text


def test_repetitions_of_which_different_things_are_kept_are_not_folded() -> None:
    make, args, _ = DRAWN["transformer"]
    whole = preview(make(), args, keep_module=[f"blocks.{n}.attn" for n in range(4)])
    assert len(whole.drawing().folds) == 1
    assert len(whole.repredicate(keep_module="blocks.2.attn").drawing().folds) == 0


def test_what_is_kept_and_not_shown_is_counted() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.BatchNorm1d(4)).eval()
    seen = preview(model, torch.ones(2, 4), keep_op=kind("buffer") | op("linear"), include_source_events=True)
    for drawing in (seen.drawing(), seen.dry.drawing()):
        assert drawing.caption[-1] == "not in this picture: 2 kept values, 32 B per pass"
        assert bytes_on(drawing) + 32 == seen.nbytes
    assert not any("not in this picture" in line for line in seen.drawing(buffers="all").caption)
    assert seen.drawing(module="2").caption[-1] == "not in this picture: 3 kept values, 64 B per pass"


def test_what_is_kept_of_orphans_is_shown() -> None:
    class Orphan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch.rand(3).sin()
            return x.cos()

    drawing = preview(Orphan(), torch.ones(2), keep_op="sin").drawing()
    assert [node.id for node in drawing.nodes if node.mark is not None and node.mark.verdict == "kept"] == [
        "sin_1 (orphan)"
    ]


def test_a_history_previews_on_its_own_graph(tmp_path: Path) -> None:
    model, x = mlp(), torch.ones(2, 4)
    history = log_forward_pass(model, x)
    seen = history.preview(x, keep_op="tanh")
    assert seen.history is history and seen.kept == preview(model, x, keep_op="tanh").kept == ["1/tanh"]
    assert "not in this picture" not in seen.draw(format="dot").text
    history.save(tmp_path / "pass.h5")
    loaded = load_history(tmp_path / "pass.h5")
    with pytest.raises(OptionError, match=r"from a file has no model to run; call fastrec.graph.preview\(model, "):
        loaded.preview(x, keep_op="tanh")


def test_several_roots_are_previewed_by_a_call() -> None:
    roots = {"actor": nn.Linear(2, 2), "critic": nn.Linear(2, 1)}
    history = get_model_metadata(
        roots, call=lambda: (roots["actor"](torch.ones(1, 2)), roots["critic"](torch.ones(1, 2)))
    )
    seen = history.preview(
        call=lambda: (roots["actor"](torch.ones(1, 2)), roots["critic"](torch.ones(1, 2))), keep_op=True
    )
    assert bytes_on(seen.drawing()) == seen.nbytes > 0


def test_a_pass_that_goes_another_way_than_the_graph_is_told() -> None:
    class Way(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sin() if x.sum() > 0 else x.cos()

    history = get_model_metadata(Way(), torch.ones(2))
    assert (
        history.preview(-torch.ones(2), keep_op="cos").drawing().caption[-1].startswith("not in this picture: 1 kept")
    )


def test_the_model_is_as_it_was() -> None:
    model, x = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout()), torch.rand(8, 4)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    preview(model, x, keep_op=True).draw()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_dry_run_refuses_what_needs_a_graph() -> None:
    dry = fastrec.dry_run(mlp(), torch.ones(2, 4), keep_op="tanh")
    for options in ({"module": "0"}, {"vis_mode": "rolled"}):
        with pytest.raises(OptionError, match=r"asks for the graph of a pass, .* draw fastrec.graph.preview\(model"):
            dry.draw(**options)
