"""Units are the last axis, or the channels of a convolution, as what made a value tells."""

import pytest
import torch
from torch import nn

from fastrec import Recorder, record
from fastrec._errors import OptionError
from fastrec.events.sites import Site
from fastrec.recording._recording import Recording
from fastrec.report.units import SiteTraits, UnitAxes, unit_axis


def op(layer_type: str) -> Site:
    return Site(f"x/{layer_type}", "op", layer_type, layer_type)


@pytest.mark.parametrize(
    ("layer_type", "shape", "earlier", "axis"),
    [
        ("linear", (8, 5), (), 1),
        ("linear", (8, 10, 5), (), 2),
        ("conv2d", (8, 16, 5, 5), (), 1),
        ("conv2d", (16, 5, 5), (), 0),
        ("conv1d", (8, 16, 5), (), 1),
        ("convtranspose3d", (8, 16, 5, 5, 5), (), 1),
        ("maxpool2d", (8, 16, 2, 2), ("conv2d",), 1),
        ("adaptiveavgpool2d", (8, 16, 1, 1), (), 1),
        ("batchnorm", (8, 16, 5, 5), ("conv2d",), 1),
        ("batchnorm", (8, 16), ("linear",), 1),
        ("relu", (8, 16, 5, 5), ("conv2d", "batchnorm"), 1),
        ("relu", (8, 16, 5, 5), ("conv2d", "batchnorm", "add"), 1),
        ("gelu", (8, 7, 7, 96), ("conv2d", "layernorm", "linear"), 3),
        ("relu", (8, 16, 5), ("conv1d",), 1),
        ("relu", (8, 512), ("conv2d", "flatten"), 1),
        ("relu", (8, 10, 512), ("conv2d", "flatten"), 2),
        ("relu", (8, 16, 5, 5), None, 1),
        ("softmax", (8, 4, 10, 10), ("matmul",), 3),
        ("layernorm", (8, 7, 7, 96), (), 3),
        ("sum", (), (), -1),
        ("relu", (7,), (), 0),
    ],
)
def test_the_axis_of_the_units(
    layer_type: str, shape: tuple[int, ...], earlier: tuple[str, ...] | None, axis: int
) -> None:
    assert unit_axis(op(layer_type), shape, earlier) == axis


def cnn() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5), nn.Tanh())


@pytest.mark.parametrize("option", ["keep_op", "keep_module"])
def test_a_convolutional_model_has_channels_and_units(option: str) -> None:
    recording = record(cnn(), torch.randn(2, 3, 8, 8), **{option: True})
    units = {name: site.units for name, site in recording.describe().items()}
    assert [units[name] for name in units if name.split("/")[0] in "0124"] == [8, 8, 8, 5]


def test_channels_of_a_model_are_dead_over_the_batch_and_over_space() -> None:
    model = cnn()
    with torch.no_grad():
        model[0].weight[:4] = 0
        model[0].bias[:4] = -1
    recording = record(model, torch.randn(2, 3, 8, 8), keep_op="relu")
    value = recording.stack("1/relu")
    dead = (value == 0).all(dim=(0, 1, 3, 4)) if value.ndim > 5 else (value[0] == 0).flatten(2).all(dim=2).all(dim=0)
    assert recording.describe()["1/relu"]["dead_units"].tolist() == [dead.float().mean().item()]


def transformer() -> Recording:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    with Recorder(layer, keep_op=["relu", "linear"]) as rec:
        layer(torch.randn(2, 5, 16))
    return rec.recording


def test_a_transformer_has_the_units_of_its_last_axis() -> None:
    statistics = transformer().describe()
    assert {site.units for site in statistics.values()} <= {16, 32, 48}  # 48: queries, keys and values
    assert any(site.units == 32 and name.endswith("relu") for name, site in statistics.items())


def test_a_user_says_which_axis_it_is() -> None:
    statistics = transformer().describe(unit_axis={"*relu": 1})
    assert {site.units for name, site in statistics.items() if name.endswith("relu")} == {5}


@pytest.mark.parametrize("axes", [{"*": 1.5}, {"*": True}, {3: 1}, [1]])
def test_axes_that_are_none_are_refused(axes: object) -> None:
    with pytest.raises(OptionError, match="give the axis of each glob as a number, such as -1"):
        UnitAxes(axes)  # type: ignore[arg-type]


def test_an_axis_that_values_lack_is_refused() -> None:
    with pytest.raises(OptionError, match=r"'0/linear' has values of shape \(2, 3\), which have the axes 0 to 1"):
        record(nn.Sequential(nn.Linear(4, 3)), torch.ones(2, 4), keep_op=True).describe(unit_axis={"*": 2})


def test_traits_are_those_of_the_function() -> None:
    assert SiteTraits.of(op("relu")) == SiteTraits(True, "")
    assert SiteTraits.of(op("tanh")) == SiteTraits(True, "tanh")
    assert SiteTraits.of(Site("a", "module_exit", "sigmoid", "Sigmoid")) == SiteTraits(True, "sigmoid")
    assert SiteTraits.of(op("linear")) == SiteTraits(False, "")
