"""Tables of operations have all attributes of the paper's table, for a history, a layer, an operation and a module."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec.graph import ModelHistory, load_history, log_forward_pass
from fastrec.graph.rows import ALL_COLUMNS
from fastrec.graph.tensor_file import LazyTensor
from tests.graph.test_operation import EXPECTED


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(2):
            x = self.linear(x + torch.rand(3)).cos()
        return x, x.sum()


@pytest.fixture
def history() -> ModelHistory:
    return log_forward_pass(Noisy(), torch.ones(2, 3))


def test_a_table_has_all_attributes(history: ModelHistory) -> None:
    table = history.to_pandas()
    assert set(EXPECTED) - set(table.columns) == set()
    assert list(table.columns) == list(ALL_COLUMNS)
    for op, (_, row) in zip(history.operations, table.iterrows(), strict=True):
        for name in ("orig_ancestors", "output_descendents", "internally_initialized_ancestors", "lookup_keys"):
            assert row[name] == getattr(op, name)
        assert torch.equal(row.tensor_contents, op.activation) and row.func_applied is op.func_applied


def test_ancestors_are_those_of_a_walk_through_the_graph(history: ModelHistory) -> None:
    graph = history.graph
    for op in history.operations:
        above, below = graph.ancestors(op.index), graph.descendants(op.index)
        assert op.orig_ancestors == [graph.label(i) for i in sorted(above) if not graph.ops[i].parents]
        assert op.output_descendents == [graph.label(i) for i in sorted(below) if graph.ops[i].kind == "output"]


def test_a_layer_an_operation_and_a_module_are_tables_too(history: ModelHistory) -> None:
    cosine: Any = history["cos_1"]
    assert cosine.to_pandas().layer_label_w_pass.tolist() == ["cos_1_4:1", "cos_1_4:2"]
    assert cosine[1].to_pandas().columns.tolist() == list(ALL_COLUMNS)
    module = history.modules["linear"].to_pandas()
    assert module.label.tolist() == ["linear:1", "linear:2"] and module.outputs[0] == ["linear_1_3:1"]


def test_a_table_of_a_file_reads_no_values(history: ModelHistory, tmp_path: Path) -> None:
    history.save(tmp_path / "pass.h5")
    row = load_history(tmp_path / "pass.h5").to_pandas().set_index("layer_label_w_pass").loc["cos_1_4:2"]
    assert isinstance(row.tensor_contents, LazyTensor) and row.creation_args == ("linear_1_3:2",)


def test_ancestors_of_long_loops_take_no_time() -> None:
    class Long(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(5000):
                x = x.sin() + 1
            return x

    table = log_forward_pass(Long(), torch.ones(1), layers_to_save=None).to_pandas()
    assert table.orig_ancestors.iloc[-1] is table.orig_ancestors.iloc[1]
