"""Pictures: where they go, in which format, what bad input is told, and what is drawn of a model that raises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from fastrec._errors import DrawingError, OptionError, RecordingExistsError, RecordingFileError
from fastrec.graph import get_model_metadata, log_forward_pass, show_model_graph
from fastrec.graph.draw.graphviz import far_edges
from fastrec.graph.draw.rules import FAILED
from fastrec.graph.draw.view import view_of
from tests.graph.draw.dot_graph import read_dot
from tests.graph.draw.drawn_models import MODELS, history_of
from tests.helpers.programs import program

X = torch.ones(1, 4)


def net() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("a.svg", b"<svg"),
        ("a.SVG", b"<svg"),
        ("a.dot", b"digraph {"),
        ("a.gv", b"digraph {"),
        ("a.mmd", b"---\ntitle"),
        ("a.mermaid", b"---\ntitle"),
        ("a.pdf", b"%PDF-"),
        ("a.png", b"\x89PNG"),
    ],
)
def test_the_ending_of_a_path_tells_the_format(name: str, begins: bytes, tmp_path: Path) -> None:
    if name.endswith(("pdf", "png")):
        program("dot")
    picture = show_model_graph(net(), X, path=tmp_path / name)
    assert (tmp_path / name).read_bytes() == picture.content and picture.content.startswith(begins)
    assert picture.path == tmp_path / name and repr(name)[1:-1] in repr(picture)


def test_a_format_may_be_given_beside_a_path(tmp_path: Path) -> None:
    history = get_model_metadata(net(), X)
    history.draw(tmp_path / "graph.txt", format="dot")
    assert (tmp_path / "graph.txt").read_text() == history.draw(format="dot").text


def test_every_format_has_a_type_that_notebooks_know() -> None:
    program("dot")
    history = get_model_metadata(net(), X)
    types = {
        name: next(iter(history.draw(format=name)._repr_mimebundle_())) for name in ("svg", "graphviz", "png", "pdf")
    }
    assert types == {
        "svg": "image/svg+xml",
        "graphviz": "image/svg+xml",
        "png": "image/png",
        "pdf": "application/pdf",
    }
    assert list(history.draw(format="mermaid")._repr_mimebundle_()) == ["text/vnd.mermaid", "text/plain"]
    assert history.draw(format="dot")._repr_mimebundle_()["text/plain"].startswith("digraph")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"format": "svgz"}, r"format='svgz' does not exist; did you mean 'svg'"),
        ({"path": "graph.sgv"}, r"'graph.sgv' does not end like a picture, .*did you mean '.gv' or '.svg'"),
        ({"vis_mode": "role"}, r"vis_mode='role' does not exist; .*'rolled'"),
        ({"vis_nesting_depth": 0}, r"vis_nesting_depth=0: give a whole number from 1 up"),
        ({"vis_nesting_depth": 1.5}, r"vis_nesting_depth=1.5: give a whole number"),
        ({"vis_nesting_depth": True}, r"vis_nesting_depth=True: give a whole number"),
        ({"vis_nestingdepth": 1}, r"vis_nestingdepth= is no option of a drawing; did you mean 'vis_nesting_depth'"),
        ({"module": "0.O"}, r"module='0.O' is no submodule of the model; did you mean .*'0.0'"),
        ({"module": 3}, r"module=3: give the address of a submodule as a string"),
        ({"buffers": "some"}, r"buffers='some' does not exist; .*'meaningful'"),
        ({"direction": "dawn"}, r"direction='dawn' does not exist; did you mean 'down'"),
        ({"fold_repeats": "yes"}, r"fold_repeats='yes': give True or False"),
    ],
    ids=str,
)
def test_options_that_do_not_exist_are_refused_with_near_names(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        show_model_graph(net(), X, **options)
    with pytest.raises(OptionError, match=problem):
        get_model_metadata(net(), X).draw(**options)


def test_options_are_checked_before_the_model_runs(tmp_path: Path) -> None:
    def never(x: Tensor) -> Tensor:
        raise AssertionError("the model ran")

    model = nn.Identity()
    model.forward = never  # type: ignore[method-assign]
    (tmp_path / "a.svg").write_text("mine")
    with pytest.raises(RecordingExistsError, match=r"a.svg' exists; give another path, or overwrite=True"):
        show_model_graph(model, X, path=tmp_path / "a.svg")
    with pytest.raises(OptionError, match="does not exist"):
        show_model_graph(model, X, vis_mode="rolle")
    assert (tmp_path / "a.svg").read_text() == "mine"
    show_model_graph(net(), X, path=tmp_path / "a.svg", overwrite=True)
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


def test_a_module_that_did_not_run_is_told_apart_from_one_that_does_not_exist() -> None:
    model = net()
    model.register_module("spare", nn.Linear(2, 2))
    model.forward = lambda x: model[0](x)  # type: ignore[method-assign, index]
    with pytest.raises(OptionError, match=r"module='spare' did not run in this pass; "):
        show_model_graph(model, X, module="spare")


def test_a_path_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecordingFileError, match=r"a.svg' can't be written: No such file or directory"):
        show_model_graph(net(), X, path=tmp_path / "none" / "a.svg")


def test_a_picture_can_be_saved_later(tmp_path: Path) -> None:
    picture = show_model_graph(net(), X, format="dot")
    picture.save(tmp_path / "a.dot")
    assert (tmp_path / "a.dot").read_text() == picture.text
    with pytest.raises(RecordingExistsError, match=r"a.dot' exists"):
        picture.save(tmp_path / "a.dot")


def test_a_png_is_no_text() -> None:
    program("dot")
    with pytest.raises(OptionError, match=r"a picture in the format 'png' is no text; read its content"):
        _ = show_model_graph(net(), X, format="png").text


# What is drawn


def test_one_submodule_is_drawn_with_what_goes_in_and_comes_out() -> None:
    graph = read_dot(show_model_graph(net(), X, module="1", format="dot").text)
    assert {edge[:2] for edge in graph.edges} == {
        ("relu_1_2", "linear_2_3"),
        ("linear_2_3", "tanh_1_4"),
        ("tanh_1_4", "tanh_1_4 out"),
    }
    colours = {name: node["fillcolor"] for name, node in graph.nodes.items()}
    assert (colours["relu_1_2"], colours["tanh_1_4 out"]) == ("#98FB98", "#FF9999")
    assert "Sequential, 1: Sequential" in graph.caption and "20 trainable parameters" in graph.caption


def test_repeats_are_folded() -> None:
    text = history_of("transformer").draw(format="dot", fold_repeats=True, vis_nesting_depth=1).text
    graph = read_dot(text)
    assert graph.text("@blocks.0*")[:2] == ["@blocks.0 to @blocks.3 (x4)", "Block"]
    assert not any(name.startswith("@blocks.1") for name in graph.nodes)


def test_checks_and_statistics_can_be_hidden_and_shown() -> None:
    branches = history_of("branches")
    assert "gt_1_11" in read_dot(branches.draw(format="dot").text).nodes
    assert "gt_1_11" not in read_dot(branches.draw(format="dot", show_checks=False).text).nodes
    norm = get_model_metadata(nn.BatchNorm1d(4).eval(), X)
    counts = {
        buffers: sum(
            name.startswith("buffer") for name in read_dot(norm.draw(format="dot", buffers=buffers).text).nodes
        )
        for buffers in ("all", "meaningful", "none")
    }
    assert counts == {"all": 2, "meaningful": 0, "none": 0}


@pytest.mark.parametrize(("direction", "rankdir"), [("down", "TB"), ("up", "BT"), ("right", "LR"), ("left", "RL")])
def test_arrows_point_where_they_are_told_to(direction: str, rankdir: str) -> None:
    assert f"rankdir={rankdir} " in show_model_graph(net(), X, format="dot", direction=direction).text


def test_mermaid_has_nodes_boxes_edges_and_styles() -> None:
    text = history_of("branches").draw(format="mermaid").text
    view = view_of(history_of("branches").drawing())
    assert text.count(":::s") == len(view.nodes) and text.count("subgraph ") == len(view.boxes)
    arrows = re.findall(r"^    n\d+ (-->|-\.->)(\|\".*?\"\|)? n\d+$", text, re.MULTILINE)
    assert len(arrows) == len(view.edges)
    assert sum(arrow == "-.->" for arrow, _ in arrows) == sum(edge.dashed for edge in view.edges)
    assert any("IF" in mark for _, mark in arrows) and any("arg 0#91;0#93;" in mark for _, mark in arrows)


def test_mermaid_refuses_what_it_would_not_draw() -> None:
    with pytest.raises(
        DrawingError, match=r"at most 500 edges and 50,000 letters, .*; draw less \(vis_nesting_depth=1"
    ):
        history_of("dense").draw(format="mermaid", vis_nesting_depth=None) and many().draw(format="mermaid")
    assert many().draw(format="mermaid", vis_mode="rolled").text


def many() -> Any:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(300):
                x = self.step(x).relu()
            return x

    return get_model_metadata(Steps(), X)


# Graphviz


def test_a_missing_graphviz_is_told_with_what_needs_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    history = get_model_metadata(net(), X)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("pdf", "png", "graphviz"):
        with pytest.raises(DrawingError, match=r"'dot' is not on the PATH; install it \(apt install graphviz, .*'svg'"):
            history.draw(format=name)
    assert history.draw(format="svg").content and history.draw(format="dot").content


def test_graphviz_has_a_time_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "dot"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(DrawingError, match=r"did not finish in time with 6 nodes and 5 edges; draw less .* seconds="):
        get_model_metadata(net(), X).draw(format="png", seconds=0.2)


def test_what_graphviz_says_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "dot"
    broken.write_text("#!/bin/sh\necho 'no font' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(DrawingError, match="Graphviz could not draw this: no font"):
        get_model_metadata(net(), X).draw(format="png")


def test_dense_graphs_are_drawn_in_two_steps_with_every_edge() -> None:
    program("neato")

    class Dense(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            values = [x]
            for _ in range(40):
                values.append(torch.stack(values).sum(0))
            return values[-1]

    history = get_model_metadata(Dense(), X)
    view = view_of(history.drawing())
    assert far_edges(view)
    svg = ElementTree.fromstring(history.draw(format="graphviz").content)
    edges = [group for group in svg.iter("{http://www.w3.org/2000/svg}g") if group.get("class") == "edge"]
    assert len(edges) == len(view.edges)


@pytest.mark.parametrize("name", MODELS)
def test_graphviz_draws_every_model(name: str) -> None:
    program("dot")
    ElementTree.fromstring(history_of(name).draw(format="graphviz").content)


# A model that raises


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.inner = nn.Sequential(nn.ReLU(), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.first(x))


def test_of_a_model_that_raises_what_ran_is_drawn_with_what_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        show_model_graph(Failing(), X, path=tmp_path / "failed.dot")
    picture = caught.value.picture  # type: ignore[attr-defined]
    graph = read_dot((tmp_path / "failed.dot").read_text())
    assert picture.content == (tmp_path / "failed.dot").read_bytes()
    (failed,) = (name for name, node in graph.nodes.items() if node["fillcolor"] == FAILED)
    assert "linear" in graph.text(failed)[0] and "RuntimeError" in graph.text(failed)[1]
    assert {edge[:2] for edge in graph.edges} == {
        ("input_1", "linear_1_1"),
        ("linear_1_1", "relu_1_2"),
        ("relu_1_2", failed),
    }
    assert graph.clusters["@inner"]["inside"] == {"relu_1_2", failed}


def test_a_closed_module_in_which_something_failed_tells_it() -> None:
    with pytest.raises(RuntimeError) as caught:
        show_model_graph(Failing(), X, vis_nesting_depth=1, format="dot")
    graph = read_dot(caught.value.picture.text)  # type: ignore[attr-defined]
    assert graph.nodes["@inner"]["fillcolor"] == FAILED and any(
        "raised RuntimeError" in t for t in graph.text("@inner")
    )


def test_an_error_of_the_users_own_is_drawn_where_it_was_raised() -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.sin()
            raise ValueError("as it happens")

    with pytest.raises(ValueError, match="as it happens") as caught:
        log_forward_pass(Raises(), X, vis_mode="unrolled", vis_path=os.devnull + ".svg")
    history = caught.value.history  # type: ignore[attr-defined]
    graph = read_dot(history.draw(format="dot").text)
    assert any(node["fillcolor"] == FAILED and "ValueError" in node["label"] for node in graph.nodes.values())


# vis_mode of log_forward_pass


def test_a_pass_is_drawn_as_it_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    history = log_forward_pass(net(), X, vis_mode="rolled", vis_nesting_depth=1)
    first = Path("modelgraph.svg").read_bytes()
    assert first.startswith(history.draw(vis_mode="rolled", vis_nesting_depth=1).content)
    log_forward_pass(nn.ReLU(), X, vis_mode="unrolled")  # its own picture may be replaced
    assert Path("modelgraph.svg").read_bytes() != first
    Path("modelgraph.svg").write_text("mine")
    with pytest.raises(
        RecordingExistsError, match=r"modelgraph.svg exists, and fastrec did not draw it; say with vis_path"
    ):
        log_forward_pass(net(), X, vis_mode="unrolled")
    log_forward_pass(net(), X, vis_mode="unrolled", vis_path="graph.dot")
    assert "linear_1_1" in read_dot(Path("graph.dot").read_text()).nodes
    assert not log_forward_pass(net(), X, vis_mode="none").conditions and Path("modelgraph.svg").read_text() == "mine"


def test_a_notebook_shows_the_picture(tmp_path: Path) -> None:
    script = (
        "import sys, types, torch\n"
        "class ZMQInteractiveShell: pass\n"
        "shown = []\n"
        "ipython = types.ModuleType('IPython'); ipython.get_ipython = ZMQInteractiveShell\n"
        "display = types.ModuleType('IPython.display'); display.display = shown.append\n"
        "sys.modules |= {'IPython': ipython, 'IPython.display': display}\n"
        "from fastrec.graph import log_forward_pass\n"
        "log_forward_pass(torch.nn.ReLU(), torch.ones(2), vis_mode='unrolled')\n"
        "print(shown[0].format, b'relu_1_1' in shown[0].content)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "svg True\n", done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"vis_nesting_depth": 2}, {"vis_path": "a.svg"}])
def test_options_of_a_picture_need_a_picture(options: dict[str, Any]) -> None:
    with pytest.raises(
        OptionError, match=r"is about a picture, and none is drawn; give vis_mode='unrolled' or 'rolled'"
    ):
        log_forward_pass(net(), X, **options)
