"""Each rule of the visual code, on the DOT as Graphviz reads it. The numbers are those of the paper's rules."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastrec.graph import ModelHistory, get_model_metadata, log_forward_pass, show_model_graph
from tests.graph.draw.dot_graph import DotGraph, label, lines, read_dot
from tests.helpers.programs import program

GREEN, RED, YELLOW, WHITE = "#98FB98", "#FF9999", "#F7D460", "#FFFFFF"
TRAINABLE, FROZEN = "#D9D9D9", "#B0B0B0"


class SimpleRecurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = self.fc(x)
            x = x + 1
            x = x * 2
        return x


class Varied(nn.Module):
    """Modules with one and with several operations, parameters of all kinds, noise, a buffer, a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.mixed = nn.Linear(4, 4)
        self.mixed.bias.requires_grad_(False)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        x = self.block(x)
        if torch.mean(x - 5) > 3:
            x = x.sin()
        else:
            x = x.relu()
        noise = torch.rand(2, 4) + 1
        x = x / noise
        x = torch.addcmul(x, x * 2, tensor2=scale)
        return self.frozen(self.mixed(x + self.shift))


def dot(history: ModelHistory, **options: Any) -> DotGraph:
    return read_dot(history.draw(format="dot", **options).text)


@pytest.fixture(scope="module")
def varied() -> DotGraph:
    return dot(get_model_metadata(Varied(), (torch.ones(2, 4), torch.ones(4))))


@pytest.fixture(scope="module")
def recurrent() -> ModelHistory:
    return get_model_metadata(SimpleRecurrent(), torch.rand(6, 5))


def test_v01_graphviz_lays_it_out() -> None:
    text = show_model_graph(nn.ReLU(), torch.ones(2), format="dot").text
    done = subprocess.run([program("dot"), "-Tsvg"], input=text.encode(), capture_output=True, check=True)
    assert b"<svg" in done.stdout and b"relu_1_1" in done.stdout and not done.stderr


def test_v02_nodes_are_operations_and_arrows_lead_from_parent_to_child(recurrent: ModelHistory) -> None:
    graph = dot(recurrent)
    assert list(graph.nodes) == recurrent.layer_labels
    wanted = {(parent, recurrent.graph.label(op.index)) for op in recurrent.operations for parent in op.parent_layers}
    assert {edge[:2] for edge in graph.edges} == wanted


def test_v03_v04_inputs_are_green_and_outputs_red(varied: DotGraph) -> None:
    colours = {name: node["fillcolor"] for name, node in varied.nodes.items()}
    assert {name for name, colour in colours.items() if colour == GREEN} == {"input_1", "input_2"}
    assert {name for name, colour in colours.items() if colour == RED} == {"output_1"}


def test_v05_parameters_are_gray_frozen_ones_darker_and_a_mixture_both(varied: DotGraph) -> None:
    assert varied.nodes["linear_1_1"]["fillcolor"] == TRAINABLE
    assert varied.nodes["linear_2_13"]["fillcolor"] == f"{TRAINABLE}:{FROZEN}"
    assert varied.nodes["linear_3_14"]["fillcolor"] == FROZEN
    assert varied.nodes["div_1_9"]["fillcolor"] == WHITE


def test_v06_buffers_are_all_gray(varied: DotGraph) -> None:
    buffer = varied.nodes["buffer_1"]
    assert (buffer["fillcolor"], buffer["color"], buffer["fontcolor"]) == ("#F4F4F4", "#888888", "#888888")
    assert varied.text("buffer_1") == ["buffer_1", "4 (16 B)", "@shift"]


def test_v07_v08_operations_are_ellipses_and_those_that_are_a_module_rectangles(varied: DotGraph) -> None:
    boxes = {name for name, node in varied.nodes.items() if node["shape"] == "box"}
    assert boxes == {"linear_1_1", "relu_1_2", "linear_2_13", "linear_3_14"}
    assert {node["shape"] for node in varied.nodes.values()} == {"ellipse", "box"}  # relu_2_6 is a function call
    assert varied.nodes["relu_2_6"]["shape"] == "ellipse"


def test_v09_v10_modules_of_several_operations_are_nested_boxes_with_address_and_class() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    graph = dot(get_model_metadata(nn.Sequential(nn.Sequential(inner, nn.Tanh()), nn.Sigmoid()), torch.ones(1, 4)))
    assert graph.text("@0") == ["@0", "Sequential"] and graph.text("@0.0") == ["@0.0", "Sequential"]
    assert graph.clusters["@0.0"]["inside"] == {"linear_1_1", "relu_1_2"}
    assert graph.clusters["@0"]["inside"] == {"linear_1_1", "relu_1_2", "tanh_1_3"}


def test_v11_what_does_not_come_from_an_input_is_dashed(varied: DotGraph) -> None:
    dashed = {name for name, node in varied.nodes.items() if "dashed" in node["style"]}
    assert dashed == {"rand_1_7", "add_1_8", "buffer_1"}
    arrows = {edge[:2] for edge in varied.edges if "dashed" in edge[2].get("style", "")}
    assert arrows == {("rand_1_7", "add_1_8"), ("add_1_8", "div_1_9"), ("buffer_1", "add_2_12")}


def test_v12_arguments_of_non_commutative_operations_are_numbered(varied: DotGraph) -> None:
    assert label(varied.edge("relu_2_6", "div_1_9")) == "arg 0"
    assert label(varied.edge("add_1_8", "div_1_9")) == "arg 1"
    assert label(varied.edge("buffer_1", "add_2_12")) == ""  # an addition is the same both ways


def test_v12_lists_and_slices_tell_the_place_in_them() -> None:
    class Parts(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            z = torch.cat([x, y], dim=0)
            z = torch.add(z, z.sin(), alpha=2)
            return z - z[y.long()[0, 0] :].sum()

    graph = dot(get_model_metadata(Parts(), (torch.ones(2, 2), torch.ones(2, 2))))
    assert [label(graph.edge(f"input_{n}", "cat_1_1")) for n in (1, 2)] == ["arg 0[0]", "arg 0[1]"]
    assert label(graph.edge("cat_1_1", "add_1_3")) == "arg 0" and label(graph.edge("sin_1_2", "add_1_3")) == "arg 1"


def test_v13_keyword_arguments_are_marked_by_name(varied: DotGraph) -> None:
    assert label(varied.edge("input_2", "addcmul_1_11")) == "tensor2"
    assert label(varied.edge("mul_1_10", "addcmul_1_11")) == "arg 1"


def test_v14_the_tested_boolean_is_yellow(varied: DotGraph) -> None:
    assert [name for name, node in varied.nodes.items() if node["fillcolor"] == YELLOW] == ["gt_1_5"]


def test_v15_if_stands_in_bold_where_the_condition_begins(varied: DotGraph) -> None:
    marked = {edge[:2] for edge in varied.edges if "<B>" in edge[2].get("label", "")}
    assert marked == {("relu_1_2", "sub_1_3")}
    assert label(varied.edge("relu_1_2", "sub_1_3")).replace("<B>", "").replace("</B>", "").strip() == "IF"


def test_v16_v17_v18_the_caption_tells_class_tensors_and_parameters(varied: DotGraph) -> None:
    assert lines(varied.caption) == [
        "Varied",
        "18 tensors (485 B)",
        "36 trainable parameters (144 B)",
        "24 frozen parameters (96 B)",
    ]
    assert varied.caption.startswith("<B>Varied</B>")
    assert (varied.graph["labelloc"], varied.graph["labeljust"]) == ("t", "l")


def test_v19_v20_v21_v22_a_node_tells_label_shape_size_parameters_and_module(varied: DotGraph) -> None:
    assert varied.text("linear_1_1") == ["linear_1_1", "2x4 (32 B)", "params: 4x4, 4", "@block.0"]
    assert varied.text("relu_1_2") == ["relu_1_2", "2x4 (32 B)", "@block.1"]
    assert varied.text("mean_1_4") == ["mean_1_4", "scalar (4 B)"]


def deep() -> ModelHistory:
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    return get_model_metadata(nn.Sequential(nn.Sequential(inner, nn.Tanh()), nn.Sigmoid()), torch.ones(1, 4))


@pytest.mark.parametrize(
    ("depth", "nodes"),
    [
        (1, ["input_1", "@0", "sigmoid_1_4", "output_1"]),
        (2, ["input_1", "@0.0", "tanh_1_3", "sigmoid_1_4", "output_1"]),
        (3, ["input_1", "linear_1_1", "relu_1_2", "tanh_1_3", "sigmoid_1_4", "output_1"]),
        (1000, ["input_1", "linear_1_1", "relu_1_2", "tanh_1_3", "sigmoid_1_4", "output_1"]),
    ],
)
def test_v23_a_depth_shows_what_lies_deeper_as_one_node(depth: int, nodes: list[str]) -> None:
    graph = dot(deep(), vis_nesting_depth=depth)
    assert sorted(graph.nodes) == sorted(nodes)
    chain = [(a, b) for a, b in zip(nodes, nodes[1:], strict=False)]
    assert {edge[:2] for edge in graph.edges} == set(chain) and len(graph.edges) == len(chain)


def test_v23_a_closed_module_tells_what_it_is() -> None:
    graph = dot(deep(), vis_nesting_depth=1)
    assert graph.text("@0") == ["@0", "Sequential", "1x4 (16 B)", "3 operations, 20 parameters"]
    assert (graph.nodes["@0"]["shape"], graph.nodes["@0"]["fillcolor"]) == ("box3d", TRAINABLE)


def test_v24_unrolled_each_pass_is_a_node(recurrent: ModelHistory) -> None:
    graph = dot(recurrent, vis_mode="unrolled")
    assert [name for name in graph.nodes if name.startswith("add")] == [f"add_1_2:{n}" for n in (1, 2, 3, 4)]
    assert graph.text("linear_1_1:3") == ["linear_1_1:3", "6x5 (120 B)", "params: 5x5, 5", "@fc:3"]
    assert not any("headlabel" in edge[2] or "taillabel" in edge[2] for edge in graph.edges)


def test_v25_rolled_each_layer_is_a_node_with_its_number_of_passes(recurrent: ModelHistory) -> None:
    graph = dot(recurrent, vis_mode="rolled")
    assert list(graph.nodes) == recurrent.layer_list
    assert graph.text("linear_1_1") == ["linear_1_1 (x4)", "6x5 (120 B)", "params: 5x5, 5", "@fc"]
    assert graph.text("output_1")[0] == "output_1"


def test_v26_rolled_edges_tell_the_passes_where_these_differ(recurrent: ModelHistory) -> None:
    graph = dot(recurrent, vis_mode="rolled")
    marks = {edge[:2]: (label(edge[2], "taillabel"), label(edge[2], "headlabel")) for edge in graph.edges}
    assert marks == {
        ("input_1", "linear_1_1"): ("", "In 1"),
        ("mul_1_3", "linear_1_1"): ("Out 1-3", "In 2-4"),
        ("linear_1_1", "add_1_2"): ("", ""),
        ("add_1_2", "mul_1_3"): ("", ""),
        ("mul_1_3", "output_1"): ("Out 4", ""),
    }


def test_v27_the_way_of_the_gradients_is_blue() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.ones(1, 4, requires_grad=True)
    history = log_forward_pass(model, x, save_gradients=True)
    model(x).sum().backward()
    assert not any(edge[2].get("color") for edge in dot(history).edges)  # another pass got these gradients

    outputs: list[Tensor] = []
    history = log_forward_pass(model, save_gradients=True, call=lambda: outputs.append(model(x)))
    outputs[0].sum().backward()
    blue = [edge[:2] for edge in dot(history).edges if edge[2].get("color") == "#9197F6"]
    assert blue == [("linear_1_1", "input_1"), ("relu_1_2", "linear_1_1")]
    assert not any(edge[2].get("color") for edge in dot(history, show_backward=False).edges)


def test_v28_a_picture_is_drawn_without_saving_and_changes_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout())
    x = torch.rand(8, 4)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    picture = show_model_graph(model, x, vis_mode="rolled", format="dot")
    assert "batchnorm_1_1" in read_dot(picture.text).nodes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_v29_only_what_ran_is_drawn() -> None:
    torch.manual_seed(0)
    model = Varied()
    low = dot(get_model_metadata(model, (torch.zeros(2, 4), torch.ones(4))))
    with torch.no_grad():
        model.block[0].bias.fill_(100.0)  # type: ignore[operator, union-attr]
    high = dot(get_model_metadata(model, (torch.zeros(2, 4), torch.ones(4))))
    assert "sin_1_6" in high.nodes and "relu_2_6" not in high.nodes
    assert "sin_1_6" not in low.nodes and "relu_2_6" in low.nodes


def test_functions_of_modules_are_ellipses_also_where_they_bear_the_same_name() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.act(x) - 1)

    graph = dot(get_model_metadata(Both(), torch.ones(2)))
    assert [graph.nodes[name]["shape"] for name in ("relu_1_1", "relu_2_3")] == ["box", "ellipse"]
