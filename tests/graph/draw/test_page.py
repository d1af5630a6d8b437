"""The page of a graph in a real browser: it shows what Python describes, does what readers do, and loads nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

import fastrec
from fastrec._errors import OptionError, RecordingExistsError, RecordingFileError
from fastrec._web.document import asset
from fastrec.graph import ModelHistory, get_model_metadata, log_forward_pass, preview, validate_history
from fastrec.graph.draw.layout import layout_of
from fastrec.graph.draw.notebook import first_opening
from fastrec.graph.draw.page import MAX_OPERATIONS, page_of, scripts
from fastrec.graph.draw.svg import svg_of
from fastrec.graph.draw.view import opening_at, view_of
from tests.graph.draw.browser import checks_of
from tests.graph.draw.diagrams import random_diagram
from tests.graph.draw.dot_graph import label, read_dot
from tests.graph.draw.drawn_models import MODELS, history_of
from tests.helpers.browser import document_of, json_in

DRAWN = [
    *((name, {}) for name in MODELS),
    ("recurrent", {"vis_mode": "rolled"}),
    ("transformer", {"module": "blocks.1"}),
]


def relu() -> ModelHistory:
    return get_model_metadata(nn.ReLU(), torch.ones(2))


@pytest.fixture(scope="module", params=DRAWN, ids=lambda drawn: "-".join([drawn[0], *map(str, drawn[1].values())]))
def checked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelHistory, Any, Any]:
    """A history, the options of its drawing, and what its page found out."""
    name, options = request.param
    folder = tmp_path_factory.mktemp("page")
    history = history_of(name)
    history.to_html(folder / "page.html", **options)
    return history, options, checks_of(folder / "page.html")


def test_a_page_runs_without_errors_and_requests(checked: tuple[ModelHistory, Any, Any]) -> None:
    assert checked[2]["errors"] == [] and checked[2]["requests"] == []


def test_a_page_shows_at_each_depth_what_python_describes(checked: tuple[ModelHistory, Any, Any]) -> None:
    history, options, checks = checked
    drawing = history.drawing(**options)
    assert len(checks["views"]) == 2 * (max(drawing.depths, default=0) + 1 - _levels_of_single_boxes(drawing))
    for seen in checks["views"]:
        opening = opening_at(drawing, seen["depth"], folded=seen["isFolded"])
        view = view_of(drawing, opening)
        assert seen["nodes"] == [node.id for node in view.nodes]
        assert seen["frames"] == [box.id for box in view.boxes]
        assert [tuple(edge) for edge in seen["edges"]] == [
            (e.source, e.target, [*e.head], [*e.tail], e.dashed, e.kind) for e in view.edges
        ]
        assert seen["svg"] == svg_of(drawing, opening)
        assert seen["problems"] == []


def _levels_of_single_boxes(drawing: Any) -> int:
    """How many of the deepest levels hold nothing but modules that are never drawn."""
    depths = [depth for box, depth in zip(drawing.boxes, drawing.depths, strict=True) if not box.is_single]
    return int(max(drawing.depths, default=0) - max(depths, default=0))


@pytest.mark.parametrize("part", ["modules", "folds", "reveals", "probes", "controls", "states", "looks"])
def test_a_page_does_what_readers_do(checked: tuple[ModelHistory, Any, Any], part: str) -> None:
    assert checked[2][part]["problems"] == []


def test_a_page_opens_as_far_as_a_notebook_shows(checked: tuple[ModelHistory, Any, Any]) -> None:
    drawing = checked[0].drawing(**checked[1])
    assert checked[2]["firstNodes"] == len(view_of(drawing, first_opening(drawing)).nodes)


def test_the_checks_look_at_something(checked: tuple[ModelHistory, Any, Any]) -> None:
    history, options, checks = checked
    drawing = history.drawing(**options)
    assert checks["modules"]["count"] == sum(not box.is_single for box in drawing.boxes)
    assert checks["folds"]["count"] == len(drawing.folds)
    assert checks["reveals"]["count"] >= min(len(drawing.nodes), 50) and checks["probes"]["count"] > 0


@pytest.mark.parametrize("name", MODELS)
def test_page_dot_and_description_have_the_same_nodes_edges_and_marks(name: str, tmp_path: Path) -> None:
    history = history_of(name)
    history.to_html(tmp_path / "page.html")
    views = checks_of(tmp_path / "page.html")["views"]
    whole = [view for view in views if not view["isFolded"]][-1]
    dot = read_dot(history.draw(format="dot").text)
    assert set(whole["nodes"]) == set(dot.nodes) and set(whole["frames"]) == set(dot.clusters)
    drawn = {(source, target): (head, tail) for source, target, head, tail, _, _ in whole["edges"]}
    assert set(drawn) == {(tail, head) for tail, head, _ in dot.edges}
    for tail, head, attributes in dot.edges:
        said = " ".join(label(attributes, where) for where in ("label", "headlabel", "taillabel", "xlabel"))
        assert all(text in said for texts in drawn[tail, head] for text in texts)


def test_the_page_lays_out_as_python_does(tmp_path: Path) -> None:
    diagrams = [random_diagram(seed) for seed in range(60)]
    page = tmp_path / "layout.html"
    data = msgspec.json.encode(diagrams).decode()
    script = """
      const places = ({x, y, width, height}) => [x, y, width, height];
      const found = DIAGRAMS.map((diagram) => {
        const {nodes, boxes, routes, crossings} = layoutOf(diagram);
        return [nodes.map(places), boxes.map(places), crossings,
          routes.map((route) => [route.kind, route.stations, route.isReversed, route.head, route.tail])];
      });
      document.body.innerHTML = `<pre id="layouts">${JSON.stringify(found)}</pre>`;
    """
    source = scripts(["metrics.js", "layers.js", "layout.js"])
    page.write_text(f"<meta charset=utf-8><body><script>{source};const DIAGRAMS = {data};{script}</script>")
    found = json_in(document_of(page), "layouts")
    for diagram, (nodes, boxes, crossings, routes) in zip(diagrams, found, strict=True):
        layout = layout_of(diagram)
        assert [tuple(place) for place in nodes] == layout.nodes and [tuple(place) for place in boxes] == layout.boxes
        assert crossings == layout.crossings
        assert [[route[0], [tuple(s) for s in route[1]], *route[2:]] for route in routes] == [
            [route.kind, list(route.stations), route.is_reversed, route.head, route.tail] for route in layout.routes
        ]


def test_a_page_is_one_file_that_forbids_itself_to_load_anything() -> None:
    html = page_of(relu().drawing())
    assert "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:" in html
    loading = r"<(?:link|img|iframe|object|embed)\b|\bsrc=|@import|\burl\((?!#)|\bimport\(|fetch\(|XMLHttp"
    assert not re.search(loading, html)
    without = html.replace("http://www.w3.org/2000/svg", "")
    assert "http" not in re.sub(r"Content-Security-Policy|http-equiv", "", without)


def test_names_can_not_become_markup() -> None:
    html = page_of(history_of("wild").drawing())
    assert html.count("</script>") == 2 and html.count("<script") == 2
    assert html.isascii() or "\u2028" not in html
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    assert "@</script><script>wild()</script>" in data["strings"]
    assert "<title>&lt;/script&gt;&lt;title&gt;&#x27;&quot;&amp;&lt;wild&gt;</title>" in html


def test_a_path_that_exists_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("mine")
    history = relu()
    with pytest.raises(RecordingExistsError, match=r"page.html' exists; give another path, or overwrite=True"):
        history.to_html(path)
    assert path.read_text() == "mine"
    history.to_html(path, overwrite=True)
    assert path.read_text().startswith("<!doctype html>")


def test_a_path_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecordingFileError, match=r"page.html' can't be written: No such file or directory"):
        relu().to_html(tmp_path / "none" / "page.html")


def test_more_operations_than_a_page_has_room_for_are_refused_with_a_remedy(tmp_path: Path) -> None:
    drawing = relu().drawing()
    many = msgspec.structs.replace(drawing, nodes=[drawing.nodes[0]] * (MAX_OPERATIONS + 1))
    with pytest.raises(
        OptionError, match=r"20,001 operations, and has room for 20,000; give vis_mode='rolled', .*module="
    ):
        page_of(many)
    rolled = relu().drawing(vis_mode="rolled")
    with pytest.raises(OptionError, match=r"room for 20,000; give module='...'"):
        page_of(msgspec.structs.replace(rolled, nodes=many.nodes))
    relu().to_html(tmp_path / "rolled.html", vis_mode="rolled")


def test_options_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"vis_mod= is no option of a drawing; did you mean 'vis_mode'"):
        relu().to_html(tmp_path / "page.html", vis_mod="rolled")
    with pytest.raises(OptionError, match=r"direction='up': a page points down"):
        relu().to_html(tmp_path / "page.html", direction="up")
    assert not (tmp_path / "page.html").exists()


def badge(path: Path) -> str:
    found = re.search(r'<span id="badge"[^>]*>(.*?)</span>', document_of(path), re.DOTALL)
    assert found is not None
    return re.sub("<[^>]*>", "", found[1]) if "hidden" not in found[0].partition(">")[0] else "hidden"


def test_a_badge_tells_whether_what_was_saved_is_right(tmp_path: Path) -> None:
    history = log_forward_pass(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2))
    history.to_html(tmp_path / "plain.html")
    history.to_html(tmp_path / "valid.html", validation=validate_history(history))
    history["relu_1"].activation.add_(1)
    history.to_html(tmp_path / "wrong.html", validation=validate_history(history))
    assert [badge(tmp_path / f"{name}.html") for name in ("plain", "valid", "wrong")] == [
        "hidden",
        "validated",
        "not valid",
    ]


@pytest.mark.parametrize("make", [preview, fastrec.dry_run], ids=["preview", "dry run"])
def test_what_a_recorder_keeps_is_on_the_page(make: Any, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    seen = make(model, torch.ones(1, 4), keep_op="tanh", keep_module="0")
    seen.to_html(tmp_path / "page.html")
    checks = checks_of(tmp_path / "page.html")
    assert checks["errors"] == [] and checks["looks"]["problems"] == checks["probes"]["problems"] == []
    drawing = seen.drawing()
    assert checks["views"][-1]["svg"] == svg_of(drawing) and "kept: 16 B per pass" in checks["views"][-1]["svg"]


def test_everything_a_page_is_made_of_comes_with_the_package() -> None:
    assert all(asset(name) for name in ("graph/body.html", "graph/page.css", "widths.json", "LICENSES.md"))
