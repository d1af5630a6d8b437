"""Histories as tables, as files, as networkx graphs; and how two of them differ."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec import FastrecError
from fastrec.graph import ModelHistory, log_forward_pass


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(self.norm(x))
        if x.sum() > 0:
            x = torch.cat([x, x.cos()], dim=1)
        return torch.sub(x.sin(), other=x)


@pytest.fixture
def history() -> ModelHistory:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return log_forward_pass(Attending().eval(), torch.ones(2, 4))


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


def test_cells_say_what_the_attributes_say(history: ModelHistory) -> None:
    rows = {row["layer_label"]: row for row in history.to_pandas().to_dict("records")}
    linear = rows["linear_1_2"]
    assert linear["tensor_shape"] == [2, 4] and linear["tensor_dtype"] == "float32"
    assert linear["parent_params"] == ["linear.weight", "linear.bias"] and linear["num_params_total"] == 20
    assert linear["containing_module_origin"] == "linear:1"
    modules = history.to_pandas("modules")
    assert modules.address.tolist() == ["norm", "linear"] and modules.num_passes.tolist() == [1, 1]


def test_an_unknown_table_is_refused(history: ModelHistory) -> None:
    with pytest.raises(FastrecError, match="'ops' is no table of a history; there are 'operations', 'layers'"):
        history.to_pandas("ops")  # type: ignore[arg-type]


def test_a_missing_package_is_named(history: ModelHistory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
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


def test_the_same_graph_on_other_inputs_differs_in_values_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    first, second = (log_forward_pass(model, torch.full((2, 4), value)) for value in (1.0, 2.0))
    difference = first.diff(second)
    assert not difference and difference.values[0] == "input_1"
    assert not first.diff(first) and first.diff(first).values == ()
    assert str(difference).startswith("the same operations; ")


def test_another_branch_is_told_by_its_operations() -> None:
    model = Attending().eval()
    with torch.no_grad():
        model.linear.weight.copy_(torch.eye(4))
        model.linear.bias.zero_()
    first, second = (log_forward_pass(model, torch.full((2, 4), value)) for value in (1.0, -1.0))
    difference = first.diff(second)
    assert difference
    assert [label.partition("_")[0] for label in difference.only_in_first] == ["cos", "cat"]
    assert difference.only_in_second == ()
    changed = {entry.first.partition("_")[0]: entry.what for entry in difference.changed}
    assert changed["sin"] == ("parents", "shape") and "linear" not in changed
    assert "only in the first: cos" in str(difference)
    assert second.diff(first).only_in_second == difference.only_in_first
