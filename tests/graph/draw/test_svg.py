"""SVG that needs nothing installed: it is well-formed, complete, and says what the description says."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from fastrec._errors import OptionError
from fastrec.graph import get_model_metadata, log_forward_pass
from fastrec.graph.draw.layers import Station
from fastrec.graph.draw.layout import EdgeRoute
from fastrec.graph.draw.svg import path_of, svg_of
from fastrec.graph.draw.view import view_of
from tests.graph.draw.drawn_models import MODELS, WILD, history_of

NAMESPACE = "{http://www.w3.org/2000/svg}"


def groups(svg: str, look: str) -> list[ElementTree.Element]:
    return [group for group in ElementTree.fromstring(svg).iter(f"{NAMESPACE}g") if group.get("class") == look]


def title(group: ElementTree.Element) -> str:
    return group.findtext(f"{NAMESPACE}title") or ""


@pytest.mark.parametrize("mode", ["unrolled", "rolled"])
@pytest.mark.parametrize("name", MODELS)
def test_every_node_frame_and_edge_is_drawn_once(name: str, mode: str) -> None:
    drawing = history_of(name).drawing(vis_mode=mode)
    view, svg = view_of(drawing), svg_of(drawing)
    assert len(groups(svg, "n")) == len(view.nodes)
    assert len(groups(svg, "x")) == len(view.boxes)
    assert len(groups(svg, "y")) == len(view.edges)
    assert svg == svg_of(history_of(name).drawing(vis_mode=mode))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "wild"])
def test_nodes_and_edges_are_those_of_the_description(name: str) -> None:
    drawing = history_of(name).drawing()
    view, svg = view_of(drawing), svg_of(drawing)
    lines = {node.id: node.lines for node in view.nodes}
    assert [title(node) for node in groups(svg, "n")] == ["\n".join(node.lines) for node in view.nodes]
    assert sorted(title(edge) for edge in groups(svg, "y")) == sorted(
        f"{lines[edge.source][0]} → {lines[edge.target][0]}" + (f" ({', '.join(edge.head)})" if edge.head else "")
        for edge in view.edges
    )


def test_shapes_colours_and_dashes_are_those_of_the_rules() -> None:
    drawing = history_of("branches").drawing()
    drawn = {title(node).splitlines()[0]: node for node in groups(svg_of(drawing), "n")}
    looks = {name: node.find(f"{NAMESPACE}rect") for name, node in drawn.items()}
    fills = {name: look.get("fill") for name, look in looks.items() if look is not None}
    assert fills["input_1"] == "#98FB98" and fills["output_1"] == "#FF9999"
    assert fills["linear_1_1"] == "#D9D9D9" and fills["linear_4_6"] == "#B0B0B0"
    assert fills["linear_5_14"] == "url(#mixed-D9D9D9-B0B0B0)"
    assert [name for name, fill in fills.items() if fill == "#F7D460"] == ["gt_1_11"]
    assert [name for name, look in looks.items() if look is not None and look.get("class") == "d"] == ["rand_1_7"]
    assert {looks["linear_1_1"].get("rx"), looks["cat_1_9"].get("rx")} == {"4", "21"}  # type: ignore[union-attr]


def test_edges_tell_arguments_conditions_and_passes() -> None:
    assert all(
        f">{text}<" in svg_of(history_of("branches").drawing()) for text in ("IF", "arg 0[0]", "arg 0[3]", "arg 1")
    )
    rolled = svg_of(history_of("recurrent").drawing(vis_mode="rolled"))
    assert ">In 1<" in rolled and ">In 2-4<" in rolled and ">Out 1-3<" in rolled


def test_a_backward_pass_is_drawn_in_blue() -> None:
    history = log_forward_pass(nn.Linear(4, 2), torch.ones(1, 4), train_mode=True, save_gradients=True)
    history["output_1"].activation.sum().backward()
    svg = svg_of(history.drawing())
    assert "stroke:#9197F6" in svg and 'class="g"' in svg and 'fill="#9197F6"' in svg


def test_closed_modules_lie_on_a_sheet_and_folds_on_two() -> None:
    drawing = history_of("transformer").drawing(vis_nesting_depth=1, fold_repeats=True)
    sheets = {
        title(node).splitlines()[0]: len(node.findall(f"{NAMESPACE}rect")) for node in groups(svg_of(drawing), "n")
    }
    assert sheets["@blocks.0 to @blocks.3 (x4)"] == 3 and sheets["input_1"] == 1
    closed = svg_of(history_of("transformer").drawing(vis_nesting_depth=1))
    assert {len(node.findall(f"{NAMESPACE}rect")) for node in groups(closed, "n") if "@blocks" in title(node)} == {2}


def test_wild_names_stay_text() -> None:
    svg = svg_of(history_of("wild").drawing())
    ElementTree.fromstring(svg)
    assert "<script" not in svg and "\x0b" not in svg and svg.encode()
    assert any(WILD[0] in title(node) for node in groups(svg, "n"))


def test_characters_that_no_svg_can_hold_leave_names_different() -> None:
    model = nn.Sequential()
    for name in ("a\x0b", "a\x0c", "a\ud800"):
        model.add_module(name, nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    drawing = get_model_metadata(model, torch.ones(1, 4)).drawing()
    ids = [thing.id for things in (drawing.nodes, drawing.boxes) for thing in things]
    assert len(ids) == len(set(ids)) and "@a\ufffd" in ids
    assert svg_of(drawing).count(">@a\ufffd</text>") == 3


def test_lines_that_edges_share_are_drawn_once() -> None:
    shared = (Station(10, 0, 20), Station(30, 40, 60))
    drawn: set[str] = set()
    assert (
        path_of(EdgeRoute("near", (*shared, Station(50, 80, 80))), drawn, "e")
        == "M10 0V20C10 30 30 30 30 40V60C30 70 50 70 50 80"
    )
    assert path_of(EdgeRoute("near", (*shared, Station(5, 81, 81))), drawn, "e") == "M30 60C30 70.5 5 70.5 5 81"
    assert path_of(EdgeRoute("near", shared), drawn, "e") == ""
    assert path_of(EdgeRoute("near", shared), drawn, "e d") == "M10 0V20C10 30 30 30 30 40V60"


def test_everything_lies_on_the_paper() -> None:
    for name in MODELS:
        svg = svg_of(history_of(name).drawing())
        width, height = (int(re.search(f'{side}="(\\d+)"', svg)[1]) for side in ("width", "height"))  # type: ignore[index]
        for piece in re.findall(r'<(?:rect|text) x="(-?[\d.]+)" y="(-?[\d.]+)"', svg):
            assert 0 <= float(piece[0]) <= width and 0 <= float(piece[1]) <= height


def test_another_direction_is_refused_and_graphviz_named() -> None:
    history = get_model_metadata(nn.ReLU(), torch.ones(2))
    with pytest.raises(
        OptionError, match=r"direction='right': an SVG without Graphviz points down; .*format='graphviz'"
    ):
        history.draw(direction="right")
    assert b"<svg" in history.draw(direction="right", format="graphviz").content
