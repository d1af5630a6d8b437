"""Histories as tables, in files of other formats, and as networkx graphs."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastrec import FastrecError
from fastrec.graph import ModelHistory, log_forward_pass
from tests.graph.models import Branching


@pytest.fixture
def history() -> ModelHistory:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return log_forward_pass(Branching().eval(), torch.ones(2, 4))


TABLES = {
    "operations": "layer_label",
    "layers": "layer_label",
    "modules": "address",
    "parameters": "address",
    "buffers": "address",
}


@pytest.mark.parametrize(("what", "name"), TABLES.items())
def test_each_table_is_the_same_in_all_forms(history: ModelHistory, tmp_path: Path, what: Any, name: str) -> None:
    frame = history.to_pandas(what)
    assert len(frame) > 0
    history.to_csv(tmp_path / "t.csv", what)
    history.to_json(tmp_path / "t.json", what)
    history.to_parquet(tmp_path / "t.parquet", what)
    rows = json.loads((tmp_path / "t.json").read_text())
    with (tmp_path / "t.csv").open(newline="") as file:
        assert [row[name] for row in csv.DictReader(file)] == [row[name] for row in rows] == frame[name].tolist()
    import pandas

    assert pandas.read_parquet(tmp_path / "t.parquet")[name].tolist() == frame[name].tolist()


def test_cells_in_files_keep_integers_and_lists(history: ModelHistory, tmp_path: Path) -> None:
    history.to_csv(tmp_path / "t.csv")
    history.to_json(tmp_path / "t.json")
    with (tmp_path / "t.csv").open(newline="") as file:
        cells = {row["layer_label"]: row for row in csv.DictReader(file)}
    assert json.loads(cells["linear_1_2"]["parent_layers"]) == history["linear_1"].parent_layers
    # The buffers depend on no input, and would turn a column of numbers into floats.
    assert cells["buffer_1"]["min_distance_from_input"] == "" and cells["linear_1_2"]["min_distance_from_input"] == "2"
    rows = {row["layer_label"]: row for row in json.loads((tmp_path / "t.json").read_text())}
    assert rows["buffer_1"]["min_distance_from_input"] is None
    assert rows["linear_1_2"]["min_distance_from_input"] == 2
    assert rows["linear_1_2"]["func_time_elapsed"] == pytest.approx(history["linear_1"].func_time_elapsed)


def test_a_table_without_rows_is_written(tmp_path: Path) -> None:
    history = log_forward_pass(torch.nn.ReLU(), torch.ones(2))
    history.to_csv(tmp_path / "t.csv", "buffers")
    history.to_json(tmp_path / "t.json", "buffers")
    history.to_parquet(tmp_path / "t.parquet", "buffers")
    assert (tmp_path / "t.csv").read_text().strip() == ""
    assert json.loads((tmp_path / "t.json").read_text()) == []


def test_cells_say_what_the_attributes_say(history: ModelHistory) -> None:
    rows = {row["layer_label"]: row for row in history.to_pandas().to_dict("records")}
    linear = rows["linear_1_2"]
    assert linear["tensor_shape"] == [2, 4] and linear["tensor_dtype"] == "float32"
    assert linear["parent_params"] == ["linear.weight", "linear.bias"] and linear["num_params_total"] == 20
    assert linear["containing_module_origin"] == "linear:1"
    modules = history.to_pandas("modules")
    assert modules.address.tolist() == ["norm", "linear"] and modules.num_passes.tolist() == [1, 1]


def test_an_unknown_table_is_refused(history: ModelHistory) -> None:
    with pytest.raises(FastrecError, match="'ops' is not a table of a history; there are 'operations', 'layers'"):
        history.to_pandas("ops")  # type: ignore[arg-type]


def test_a_missing_package_is_named(history: ModelHistory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(FastrecError, match=r"needs pandas, .* pip install 'fastrec-torch\[pandas\]'"):
        history.to_csv(tmp_path / "t.csv")
    with pytest.raises(FastrecError, match=r"to_networkx\(\) needs networkx, .*'fastrec-torch\[networkx\]'"):
        history.to_networkx()
    with pytest.raises(FastrecError, match=r"to_parquet\(\) needs pyarrow, .*'fastrec-torch\[parquet\]'"):
        history.to_parquet(tmp_path / "t.parquet")


def test_the_networkx_graph_has_arguments_at_its_edges(history: ModelHistory) -> None:
    import networkx

    graph = history.to_networkx()
    assert networkx.is_directed_acyclic_graph(graph)
    assert list(graph) == history.operations.labels
    assert graph.nodes["linear_1_2"]["layer_type"] == "linear"
    sub = next(label for label in graph if label.startswith("sub"))
    assert sorted((data["arguments"] for _, _, data in graph.in_edges(sub, data=True)), key=str) == [["other"], [0]]
    assert networkx.shortest_path_length(graph, "input_1", "linear_1_2") == 2
