"""Every attribute of the paper's Supplementary Table 1, on a model small enough to know each by hand."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec.graph import ModelHistory, Operation, log_forward_pass


class Small(nn.Module):
    """A block that runs twice, a condition, a tensor made inside, a buffer, a write in place, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.register_buffer("shift", torch.full((3,), 2.0))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.block(self.block(x))
        if h.sum() > 1e9:
            h = h - 1
        y = (h + torch.ones(3)) * self.shift
        y.neg_()
        a, b = y.unbind(0)
        return {"a": a, "b": b}


LABELS = [
    *("input_1", "linear_1_1:1", "relu_1_2:1", "linear_1_1:2", "relu_1_2:2", "sum_1_3", "gt_1_4", "ones_1_5"),
    *("add_1_6", "buffer_1", "mul_1_7", "neg_1_8", "unbind_1_9", "unbind_2_10", "output_1", "output_2"),
]
X = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])


@pytest.fixture(scope="module")
def model() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.fixture(scope="module")
def before() -> float:
    return time.time()


@pytest.fixture(scope="module")
def history(model: Small, before: float) -> ModelHistory:
    return log_forward_pass(model, X, random_seed=17)


def per_op(default: Any, **exceptions: Any) -> list[Any]:
    """A value for each operation; names of exceptions have `_` for `:` and may leave the pass and total number out."""
    known = dict.fromkeys(exceptions, False)
    values = []
    for label in LABELS:
        short = "_".join(label.partition(":")[0].split("_")[:2])
        names = [n for n in (label.replace(":", "_"), short, short.rpartition("_")[0]) if n in exceptions]
        known.update(dict.fromkeys(names[:1], True))
        values.append(exceptions[names[0]] if names else default)
    assert all(known.values()), f"no operation is called {[n for n, k in known.items() if not k]}"
    return values


def test_the_model_runs_the_expected_operations(history: ModelHistory) -> None:
    assert history.layer_labels == LABELS


W, B = (3, 3), (3,)

EXPECTED: dict[str, list[Any]] = {
    "layer_label": [label.partition(":")[0] for label in LABELS],
    "layer_label_w_pass": [label if ":" in label else f"{label}:1" for label in LABELS],
    "operation_num": [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12, 12, 12],
    "layer_type": [label.partition("_")[0] for label in LABELS],
    "layer_type_num": per_op(1, unbind_2=2, output_2=2),
    "layer_total_num": [0, 1, 2, 1, 2, 3, 4, 5, 6, 0, 7, 8, 9, 10, 11, 12],
    "pass_num": per_op(1, linear_1_1_2=2, relu_1_2_2=2),
    "layer_passes_total": per_op(1, linear=2, relu=2),
    "tensor_shape": per_op((2, 3), sum=(), gt=(), ones=(3,), buffer=(3,), unbind=(3,), output=(3,)),
    "tensor_dtype": per_op(torch.float32, gt=torch.bool),
    "tensor_fsize": per_op(24, sum=4, gt=1, ones=12, buffer=12, unbind=12, output=12),
    "func_applied_name": per_op(
        "", linear="linear", relu="relu", sum="sum", gt="gt", ones="ones", add="add", mul="mul", neg="neg_",
        unbind="unbind",
    ),
    "func_position_args_non_tensor": per_op([], gt=[1e9], ones=[3], unbind=[0]),
    "func_keyword_args_non_tensor": per_op({}, relu={"inplace": False}),
    "function_is_inplace": per_op(False, neg=True),
    "gradfunc_name": per_op(
        None, linear="AddmmBackward0", relu="ReluBackward0", sum="SumBackward0", add="AddBackward0",
        mul="MulBackward0", neg="NegBackward0", unbind="UnbindBackward0", output="UnbindBackward0",
    ),
    "is_part_of_iterable_output": per_op(False, unbind=True),
    "iterable_output_index": per_op(None, unbind_1=0, unbind_2=1),
    "computed_with_params": per_op(False, linear=True),
    "num_param_tensors": per_op(0, linear=2),
    "parent_param_shapes": per_op([], linear=[W, B]),
    "num_params_total": per_op(0, linear=12),
    "parent_params_fsize": per_op(0, linear=48),
    "same_layer_operations": [
        [f"{label}:{n}" for n in ((1, 2) if label in ("linear_1_1", "relu_1_2") else (1,))]
        for label in (label.partition(":")[0] for label in LABELS)
    ],
    "parent_layers": [
        [], ["input_1"], ["linear_1_1:1"], ["relu_1_2:1"], ["linear_1_1:2"], ["relu_1_2:2"], ["sum_1_3"], [],
        ["relu_1_2:2", "ones_1_5"], [], ["add_1_6", "buffer_1"], ["mul_1_7"], ["neg_1_8"], ["neg_1_8"],
        ["unbind_1_9"], ["unbind_2_10"],
    ],
    "orig_ancestors": [
        [], *[["input_1"]] * 6, [], ["input_1", "ones_1_5"], [], *[["input_1", "ones_1_5", "buffer_1"]] * 6,
    ],
    "child_layers": [
        ["linear_1_1:1"], ["relu_1_2:1"], ["linear_1_1:2"], ["relu_1_2:2"], ["sum_1_3", "add_1_6"], ["gt_1_4"], [],
        ["add_1_6"], ["mul_1_7"], ["mul_1_7"], ["neg_1_8"], ["unbind_1_9", "unbind_2_10"], ["output_1"], ["output_2"],
        [], [],
    ],
    "sibling_layers": per_op(
        [], sum=["add_1_6"], add=["sum_1_3"], unbind_1=["unbind_2_10"], unbind_2=["unbind_1_9"],
    ),
    "spouse_layers": per_op(
        [], relu_1_2_2=["ones_1_5"], ones=["relu_1_2:2"], add=["buffer_1"], buffer=["add_1_6"],
    ),
    "is_input_layer": per_op(False, input=True),
    "has_input_ancestor": per_op(True, ones=False, buffer=False),
    "min_distance_from_input": [0, 1, 2, 3, 4, 5, 6, None, 5, None, 6, 7, 8, 8, 9, 9],
    "max_distance_from_input": [0, 1, 2, 3, 4, 5, 6, None, 5, None, 6, 7, 8, 8, 9, 9],
    "is_output_layer": per_op(False, output=True),
    "is_output_ancestor": per_op(True, sum=False, gt=False),
    "output_descendents": per_op(
        ["output_1", "output_2"], sum=[], gt=[], unbind_1=["output_1"], unbind_2=["output_2"], output=[],
    ),
    "min_distance_from_output": [9, 8, 7, 6, 5, None, None, 5, 4, 4, 3, 2, 1, 1, 0, 0],
    "max_distance_from_output": [9, 8, 7, 6, 5, None, None, 5, 4, 4, 3, 2, 1, 1, 0, 0],
    "is_buffer_layer": per_op(False, buffer=True),
    "buffer_address": per_op(None, buffer="shift"),
    "initialized_inside_model": per_op(False, ones=True),
    "internally_initialized_parents": per_op([], add=["ones_1_5"]),
    "internally_initialized_ancestors": [*[[]] * 8, ["ones_1_5"], [], *[["ones_1_5"]] * 6],
    "terminated_inside_model": per_op(False, gt=True),
    "is_terminal_bool_layer": per_op(False, gt=True),
    "in_cond_branch": per_op(False, sum=True, gt=True),
    "is_computed_inside_submodule": per_op(False, linear=True, relu=True),
    "containing_module_origin": per_op(
        None, linear_1_1_1="block.0:1", relu_1_2_1="block.1:1", linear_1_1_2="block.0:2", relu_1_2_2="block.1:2",
    ),
    "containing_module_origin_nested": per_op(
        [], linear_1_1_1=["block:1", "block.0:1"], relu_1_2_1=["block:1", "block.1:1"],
        linear_1_1_2=["block:2", "block.0:2"], relu_1_2_2=["block:2", "block.1:2"],
    ),
    "modules_entered": per_op(
        [], input=["block:1", "block.0:1"], linear_1_1_1=["block.1:1"], relu_1_2_1=["block:2", "block.0:2"],
        linear_1_1_2=["block.1:2"],
    ),
    "is_submodule_output": per_op(False, linear=True, relu=True),
    "modules_exited": per_op(
        [], linear_1_1_1=["block.0:1"], relu_1_2_1=["block.1:1", "block:1"], linear_1_1_2=["block.0:2"],
        relu_1_2_2=["block.1:2", "block:2"],
    ),
    "is_bottom_level_submodule_output": per_op(False, linear=True, relu=True),
}  # fmt: skip
BY_THEMSELVES = {
    *("lookup_keys", "tensor_contents", "creation_args", "creation_kwargs", "func_applied", "func_time_elapsed"),
    "func_rng_states",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_attribute_of_operations(name: str, history: ModelHistory) -> None:
    found = {label: getattr(history[label], name) for label in LABELS}
    assert found == dict(zip(LABELS, EXPECTED[name], strict=True))


def test_all_sixty_attributes_are_tested() -> None:
    assert len(set(EXPECTED) | BY_THEMSELVES) == 60
    assert all(isinstance(getattr(Operation, name), property) for name in {*EXPECTED, *BY_THEMSELVES})


def test_lookup_keys(history: ModelHistory) -> None:
    assert history["relu_1_2:2"].lookup_keys == [
        *(-12, 4),
        *("block.1:2", "block:2", "relu_1:2", "relu_1_2:2"),
    ]
    assert history["sum_1_3"].lookup_keys == [-11, 5, "sum_1", "sum_1:1", "sum_1_3", "sum_1_3:1"]
    assert all(history[key] == op for op in history for key in op.lookup_keys)


def test_tensor_contents_are_the_values_of_the_pass(history: ModelHistory, model: Small) -> None:
    h = model.block(X)
    y = (model.block(h) + 1) * 2
    expected = {
        "input_1": X,
        "linear_1_1:1": model.block[0](X),
        "relu_1_2:1": h,
        "linear_1_1:2": model.block[0](h),
        "relu_1_2:2": model.block(h),
        "sum_1_3": model.block(h).sum(),
        "gt_1_4": torch.tensor(False),
        "ones_1_5": torch.ones(3),
        "add_1_6": model.block(h) + 1,
        "buffer_1": torch.full((3,), 2.0),
        "mul_1_7": y,
        "neg_1_8": -y,
        "unbind_1_9": -y[0],
        "unbind_2_10": -y[1],
        "output_1": -y[0],
        "output_2": -y[1],
    }
    for label, value in expected.items():
        assert torch.equal(history[label].tensor_contents, value), label
        assert history[label].activation is history[label].tensor_contents


def test_creation_args_are_the_arguments_as_they_were(history: ModelHistory, model: Small) -> None:
    args = history["linear_1_1:1"].creation_args
    assert torch.equal(args[0], X)
    assert args[1] is model.block[0].weight
    assert args[2] is model.block[0].bias
    assert torch.equal(history["neg_1_8"].creation_args[0], history["mul_1_7"].activation)
    assert history["gt_1_4"].creation_args[1] == 1e9
    assert history["ones_1_5"].creation_args == (3,)


def test_creation_kwargs(history: ModelHistory) -> None:
    assert history["relu_1_2:1"].creation_kwargs == {"inplace": False}
    assert history["sum_1_3"].creation_kwargs == {}


def test_func_applied_is_the_function(history: ModelHistory) -> None:
    assert history["linear_1_1:1"].func_applied is nn.functional.linear
    assert history["relu_1_2:1"].func_applied is nn.functional.relu
    assert history["sum_1_3"].func_applied == Tensor.sum
    assert history["input_1"].func_applied is None


def test_func_time_elapsed_is_measured(history: ModelHistory) -> None:
    times = {op.layer_label_w_pass: op.func_time_elapsed for op in history}
    assert all(0 < times[op.layer_label_w_pass] < 10 for op in history if op.func_applied)
    assert times["input_1:1"] == times["output_1:1"] == 0


def test_func_rng_states_run_a_function_again() -> None:
    history = log_forward_pass(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)), torch.ones(64))
    with torch.random.fork_rng():
        for label in ("dropout_1:1", "dropout_1:2") if "dropout_1:2" in str(history) else ("dropout_1", "dropout_2"):
            op = history[label]
            torch.set_rng_state(op.func_rng_states["cpu"])
            assert torch.equal(op.func_applied(*op.creation_args, **op.creation_kwargs), op.activation)


MODEL_EXPECTED: dict[str, Any] = {
    "model_name": "Small",
    "random_seed_used": 17,
    "model_is_recurrent": True,
    "model_max_recurrent_loops": 2,
    "model_is_branching": True,
    "model_has_conditional_branching": True,
    "layer_list": list(dict.fromkeys(label.partition(":")[0] for label in LABELS)),
    "input_layers": ["input_1"],
    "output_layers": ["output_1", "output_2"],
    "buffer_layers": ["buffer_1"],
    "internally_initialized_layers": ["ones_1_5"],
    "internally_terminated_bool_layers": ["gt_1_4"],
    "layers_computed_with_params": ["linear_1_1"],
    "num_tensors_total": 16,
    "tensor_fsize_total": 24 * 8 + 4 + 1 + 12 * 6,
    "tensor_fsize_saved": 24 * 8 + 4 + 1 + 12 * 6,
    "num_tensors_saved": 16,
    "total_param_tensors": 2,
    "total_param_layers": 1,
    "total_params": 12,
    "total_params_fsize": 48,
    "module_addresses": ["block", "block.0", "block.1"],
    "module_types": {"block": "Sequential", "block.0": "Linear", "block.1": "ReLU"},
    "module_num_passes": {"block": 2, "block.0": 2, "block.1": 2},
    "module_pass_children": {
        "block:1": ["block.0:1", "block.1:1"],
        "block.0:1": [],
        "block.1:1": [],
        "block:2": ["block.0:2", "block.1:2"],
        "block.0:2": [],
        "block.1:2": [],
    },
    "top_level_module_passes": ["block:1", "block:2"],
}
TIMES = {
    *("pass_start_time", "pass_end_time", "elapsed_time_total", "elapsed_time_function_calls"),
    "elapsed_time_logging",
}


@pytest.mark.parametrize("name", MODEL_EXPECTED)
def test_attribute_of_the_model(name: str, history: ModelHistory) -> None:
    assert getattr(history, name) == MODEL_EXPECTED[name]


def test_all_thirty_one_attributes_are_tested() -> None:
    assert len(set(MODEL_EXPECTED) | TIMES) == 31


def test_the_pass_started_and_ended(history: ModelHistory, before: float) -> None:
    assert before <= history.pass_start_time < history.pass_end_time <= time.time()


def test_the_times_add_up(history: ModelHistory) -> None:
    assert history.elapsed_time_function_calls == sum(
        {id(op.raw.call): op.func_time_elapsed for op in history}.values()
    )
    assert 0 < history.elapsed_time_function_calls < history.elapsed_time_total
    assert history.elapsed_time_logging == history.elapsed_time_total - history.elapsed_time_function_calls


def test_counts_of_what_was_saved_are_of_what_was_saved(model: Small) -> None:
    history = log_forward_pass(model, X, layers_to_save=["linear"])
    assert (history.num_tensors_saved, history.tensor_fsize_saved) == (2, 48)
    assert (history.num_tensors_total, history.tensor_fsize_total) == (16, 269)
