"""Files for other viewers, each opened by the tool's own code."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastrec
from fastrec._errors import MissingExtraError, OptionError, RecordingExistsError, RecordingFileError
from fastrec.graph import get_model_metadata, log_forward_pass
from fastrec.graph.viewers import FORMATS, export_drawing
from tests.graph.draw.drawn_models import MODELS, history_of
from tests.graph.viewers.servers import model_explorer, netron, shown
from tests.helpers.programs import package


def words(document: str) -> str:
    """What is written in a document."""
    body = re.sub(r"<(style|script).*?</\1>", " ", document, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


@pytest.mark.slow
def test_model_explorer_opens_what_is_written_for_it(tmp_path: Path) -> None:
    history = history_of("transformer")
    history.export(tmp_path / "model.json", "model-explorer")
    with model_explorer(tmp_path / "model.json") as address:
        text = words(shown(address, tmp_path / "profile"))
    assert f"op node count {len(history.drawing().nodes)}" in text and "Unsupported" not in text


@pytest.mark.parametrize("name", ["transformer", "wild"])
def test_netron_opens_what_is_written_as_onnx(name: str, tmp_path: Path) -> None:
    package("onnx")
    history = history_of(name)
    history.export(tmp_path / "model.onnx")
    with netron(tmp_path / "model.onnx") as address:
        document = shown(address, tmp_path / "profile")
    names = [node.id for node in history.drawing().nodes if node.kind == "op"]
    assert all(name in document for name in names)
    assert "Error" not in words(document)


@pytest.mark.parametrize("name", ["branches", "transformer"])
def test_netron_opens_dot(name: str, tmp_path: Path) -> None:
    history = history_of(name)
    history.draw(tmp_path / "model.dot")
    with netron(tmp_path / "model.dot") as address:
        document = shown(address, tmp_path / "profile")
    assert document.count("node-item") >= len(history.drawing().nodes) and "Error" not in words(document)


@pytest.mark.parametrize("mode", ["unrolled", "rolled"])
@pytest.mark.parametrize("name", MODELS)
def test_onnx_files_are_valid_and_complete(name: str, mode: str, tmp_path: Path) -> None:
    package("onnx")
    import onnx

    history = history_of(name)
    drawing = history.drawing(vis_mode=mode)
    history.export(tmp_path / "model.onnx", vis_mode=mode)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model)
    graph = model.graph
    assert len(graph.node) + len(graph.input) == len(drawing.nodes) and not graph.initializer
    inputs = sum(len(node.input) for node in graph.node)
    assert inputs == sum(edge.kind == "value" and edge.source < edge.target for edge in drawing.edges)
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.value_info}
    assert all(shapes[node.name] is not None for node in graph.node if node.domain == "torch")


def test_onnx_files_hold_shapes_types_and_facts(tmp_path: Path) -> None:
    package("onnx")
    import onnx

    history = get_model_metadata(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), torch.ones(3, 4))
    history.export(tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    linear = graph.node[0]
    assert (linear.op_type, linear.name, list(linear.input)) == ("linear", "linear_1_1", ["input_1"])
    attributes = {attribute.name: attribute.s.decode() for attribute in linear.attribute}
    assert attributes["params"] == "weight 2x4, bias 2" and attributes["site"] == "0/linear"
    value = graph.value_info[0]
    assert [size.dim_value for size in value.type.tensor_type.shape.dim] == [3, 2]
    assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("mode", ["unrolled", "rolled"])
@pytest.mark.parametrize("name", MODELS)
def test_networkx_reads_graphml(name: str, mode: str, tmp_path: Path) -> None:
    networkx = pytest.importorskip("networkx")
    history = history_of(name)
    history.export(tmp_path / "model.graphml", vis_mode=mode)
    graph = networkx.read_graphml(tmp_path / "model.graphml")
    drawing = history.drawing(vis_mode=mode)
    assert set(graph.nodes) == {node.id for node in drawing.nodes}
    assert sorted(graph.edges()) == sorted(
        (drawing.nodes[e.source].id, drawing.nodes[e.target].id) for e in drawing.edges
    )
    marks = {text for _, _, data in graph.edges(data=True) for text in (data["head"], data["tail"]) if text}
    assert marks == {", ".join(texts) for edge in drawing.edges for texts in (edge.head, edge.tail) if texts}
    assert all(isinstance(data["bytes"], int) for _, data in graph.nodes(data=True))


@pytest.mark.parametrize("name", MODELS)
def test_a_trace_lays_the_times_end_to_end_with_modules_around(name: str, tmp_path: Path) -> None:
    history = history_of(name)
    history.export(tmp_path / "trace.json", "chrome-trace")
    trace = json.loads((tmp_path / "trace.json").read_text())
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    functions = [event for event in events if event["tid"] == 2]
    end = 0.0
    for event in functions:
        assert event["ts"] >= end - 0.01 and event["dur"] >= 0
        end = event["ts"] + event["dur"]
    assert [event["name"] for event in functions] == [n.id for n in history.drawing().nodes if n.kind == "op"]
    spans = {event["name"]: event for event in events if event["tid"] == 1}
    drawing = history.drawing()
    assert set(spans) == {box.id for box in drawing.boxes}
    for box in drawing.boxes:
        if box.parent >= 0:
            outer, inner = spans[drawing.boxes[box.parent].id], spans[box.id]
            assert outer["ts"] <= inner["ts"] + 0.01
            assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + 0.01
    assert "laid end to end" in trace["otherData"]["note"]


def test_model_explorer_files_hold_modules_as_layers_and_all_edges(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("a/b", nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    history = get_model_metadata(model, torch.ones(1, 4))
    history.export(tmp_path / "model.json", "model-explorer")
    (graph,) = json.loads((tmp_path / "model.json").read_text())["graphs"]
    assert [node["namespace"].split("/") for node in graph["nodes"][:2]] == [[""], ["@a∕b", "@a∕b.0"]]
    assert graph["nodes"][1]["incomingEdges"][0]["sourceNodeId"] == graph["nodes"][0]["id"]
    assert {"key": "params", "value": "weight 4x4, bias 4"} in graph["nodes"][1]["attrs"]


@pytest.mark.parametrize("format", FORMATS)
def test_failed_passes_can_be_written(format: Any, tmp_path: Path) -> None:
    if format == "onnx":
        package("onnx")
    with pytest.raises(RuntimeError) as caught:
        log_forward_pass(nn.Sequential(nn.ReLU(), nn.Linear(3, 3)), torch.ones(1, 4))
    caught.value.history.export(tmp_path / "failed", format)  # type: ignore[attr-defined]
    assert b"linear" in (tmp_path / "failed").read_bytes()


def test_a_preview_s_verdicts_come_along(tmp_path: Path) -> None:
    dry = fastrec.dry_run(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.ones(1, 4), keep_op="tanh")
    export_drawing(dry.drawing, tmp_path / "kept.json", "model-explorer", overwrite=False)
    (graph,) = json.loads((tmp_path / "kept.json").read_text())["graphs"]
    kept = [node["label"] for node in graph["nodes"] if {"key": "verdict", "value": "kept"} in node["attrs"]]
    assert kept == ["tanh_1"]
    with pytest.raises(OptionError, match="a dry run takes no times; export a history"):
        export_drawing(dry.drawing, tmp_path / "trace.json", "chrome-trace", overwrite=False)


def test_bad_input_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = get_model_metadata(nn.ReLU(), torch.ones(2))
    with pytest.raises(OptionError, match=r"format='onx' does not exist; did you mean 'onnx'"):
        history.export(tmp_path / "a", "onx")
    with pytest.raises(OptionError, match=r"a.json' does not tell the format; give format=: .*'model-explorer'"):
        history.export(tmp_path / "a.json")
    with pytest.raises(OptionError, match=r"vis_mod= is no option of a drawing; did you mean 'vis_mode'"):
        history.export(tmp_path / "a.json", "chrome-trace", vis_mod="rolled")
    with pytest.raises(OptionError, match=r"vis_mode='rolled': a trace shows each call at its time; leave it out"):
        history.export(tmp_path / "a.json", "chrome-trace", vis_mode="rolled")
    with pytest.raises(RecordingFileError, match="can't be written: No such file or directory"):
        history.export(tmp_path / "none" / "a.json", "chrome-trace")
    (tmp_path / "a.json").write_text("mine")
    with pytest.raises(RecordingExistsError, match=r"a.json' exists; give another path, or overwrite=True"):
        history.export(tmp_path / "a.json", "chrome-trace")
    history.export(tmp_path / "a.json", "chrome-trace", overwrite=True)
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "networkx", None)
    for name, extra in (("onnx", "onnx"), ("graphml", "networkx")):
        with pytest.raises(MissingExtraError, match=rf"needs {extra}, .* pip install 'fastrec-torch\[{extra}\]'"):
            history.export(tmp_path / f"b.{name}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json"]
