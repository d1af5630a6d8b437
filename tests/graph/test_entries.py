"""What a history says of modules, parameters and buffers, and its profiles."""

import pytest
import torch
from torch import nn

from fastrec._errors import OptionError
from fastrec.graph import log_forward_pass
from tests.graph.models import network

X = torch.rand(2, 3, 8, 8)


def test_profiles_are_sorted_and_add_up() -> None:
    history = log_forward_pass(network(), X)
    by_op, by_module = history.profile(), history.profile("module", sort="memory")
    assert [row.seconds for row in by_op] == sorted((row.seconds for row in by_op), reverse=True)
    assert sum(row.share for row in by_op) == pytest.approx(1)
    assert sum(row.seconds for row in by_op) == pytest.approx(history.elapsed_time_function_calls)
    rows = {row.name: row for row in by_module}
    assert rows["0"].memory == sum(rows[f"0.{i}"].memory for i in range(3)) == 4 * (2 * 4 * 6 * 6 * 2 + 2 * 4 * 3 * 3)
    assert rows["0"].parameters == 4 * (4 * 3 * 3 * 3 + 4)
    assert [row.memory for row in by_module] == sorted((row.memory for row in by_module), reverse=True)
    assert str(by_op[:2]).splitlines()[0].split() == ["name", "kind", "calls", "time", "share", "memory", "params"]


@pytest.mark.parametrize(("option", "message"), [({"by": "layer"}, "by='layer'"), ({"sort": "size"}, "sort='size'")])
def test_a_profile_of_something_else_is_refused(option: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        log_forward_pass(nn.ReLU(), torch.ones(2)).profile(**option)


def test_modules_parameters_and_buffers() -> None:
    norm = nn.BatchNorm1d(3)
    history = log_forward_pass(nn.Sequential(nn.Sequential(norm), nn.Linear(3, 2)), torch.rand(4, 3))
    assert list(history.modules) == ["0", "0.0", "1"]
    outer = history.modules["0"]
    assert (outer.module_type, outer.num_passes, outer.parameters) == ("Sequential", 1, ("0.0.weight", "0.0.bias"))
    assert outer.passes[0].children == ("0.0:1",)
    assert outer.operations == ("batchnorm_1_1",)
    assert (outer.passes[0].inputs, outer.passes[0].outputs) == (("input_1",), ("batchnorm_1_1",))
    weight = history.parameters["1.weight"]
    assert (weight.shape, weight.num_params, weight.fsize, weight.used_by) == ((2, 3), 6, 24, ("linear_1_2",))
    mean = history.buffers["0.0.running_mean"]
    assert (mean.reads, mean.used_by, mean.written_by) == (("buffer_1",), ("batchnorm_1_1",), ("batchnorm_1_1",))
