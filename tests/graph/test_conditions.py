"""Conditions: found, traced to where they branch off, and with the branch that was taken."""

import sys

import pytest
import torch
from torch import Tensor, nn

from fastrec.graph import ModelHistory, log_forward_pass

COLUMNS = pytest.mark.skipif(sys.version_info < (3, 11), reason="columns in the source are known from 3.11 on")


class If(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        if torch.mean(x - 5) > 3:
            x = x.relu()
        else:
            x = x.tanh()
        return x + 1


def conditions(model: nn.Module, x: Tensor) -> list[tuple[str, str, object]]:
    return [(c.layer_label, c.kind, c.branch) for c in log_forward_pass(model, x).conditions]


def test_the_condition_of_the_paper_is_found_and_its_start_marked() -> None:
    history = log_forward_pass(If(), torch.ones(3))
    assert history.model_has_conditional_branching
    assert history.internally_terminated_bool_layers == ["gt_1_4"]
    assert [op.layer_label for op in history if op.in_cond_branch] == ["sub_1_2", "mean_1_3", "gt_1_4"]
    assert [op.layer_label for op in history if op.is_cond_branch_start] == ["sub_1_2"]
    assert history["mul_1"].cond_branch_start_children == ["sub_1_2"]
    assert [op.layer_label for op in history if op.is_terminal_bool_layer] == ["gt_1_4"]


@pytest.mark.parametrize(("value", "branch", "op"), [(9.0, "then", "relu_1"), (0.0, "else", "tanh_1")])
def test_the_branch_that_was_taken_is_told(value: float, branch: str, op: str) -> None:
    history = log_forward_pass(If(), torch.full((3,), value))
    assert [c.branch for c in history.conditions] == [branch]
    assert history[op].conditional_branches == [("gt_1_4", branch)]
    assert history["add_1"].conditional_branches == []
    assert history["mul_1"].conditional_branches == []


def test_a_condition_knows_its_line() -> None:
    (condition,) = log_forward_pass(If(), torch.ones(3)).conditions
    assert condition.file == __file__
    assert condition.line == If.forward.__code__.co_firstlineno + 2
    assert condition.value is False


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = x + 1
            if not (x > 100).any():
                x = x * 3
        return x


def test_nested_conditions_are_told_outermost_first() -> None:
    history = log_forward_pass(Nested(), torch.ones(2))
    assert history["add_1"].conditional_branches == [("gt_1_2", "then")]
    assert history["mul_1"].conditional_branches == [("gt_1_2", "then"), ("any_1_5", "then")]
    assert [c.within for c in history.conditions] == [(), (0,)]


@COLUMNS
def test_and_or_and_not_are_understood() -> None:
    class Logic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 100 or x.max() > 0:
                x = x + 1
            if not (x.sum() > 100 or x.max() > 50):
                x = x * 2
            if x.sum() < 0 and x.max() > 0:
                x = x - 1
            return x

    assert conditions(Logic(), torch.ones(2)) == [
        ("gt_1_2", "if", "then"),
        ("gt_2_4", "if", "then"),
        ("gt_3_7", "if", "then"),
        ("gt_4_9", "if", "then"),
        ("lt_1_12", "if", "else"),
    ]


def test_each_turn_of_a_while_loop_is_a_test() -> None:
    class While(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            while x.sum() > 1:
                x = x / 2
            return x

    history = log_forward_pass(While(), torch.full((1,), 4.0))
    assert [(c.kind, c.branch) for c in history.conditions] == [("while", "then"), ("while", "then"), ("while", "else")]
    turns = [op for op in history if op.layer_type == "div"]
    assert [len(op.conditional_branches) for op in turns] == [1, 1]
    assert turns[0].conditional_branches != turns[1].conditional_branches or turns[0].layer_passes_total > 1


def test_a_value_taken_to_python_in_a_test_counts() -> None:
    class Item(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu() if x.sum().item() > 0 else x.tanh()

    history = log_forward_pass(Item(), torch.ones(2))
    assert history.model_has_conditional_branching
    assert [c.layer_label for c in history.conditions] == ["sum_1_1"]
    assert history["sum_1"].in_cond_branch


def test_a_value_taken_to_python_elsewhere_is_no_condition() -> None:
    class Item(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.sum().item()

    history = log_forward_pass(Item(), torch.ones(2))
    assert not history.model_has_conditional_branching
    assert list(history.conditions) == []


def test_a_condition_on_random_numbers_is_no_orphan() -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if torch.rand(1) >= 0 else x

    history = log_forward_pass(Random(), torch.ones(2))
    assert history.internally_terminated_bool_layers == ["ge_1_2"]
    assert history["rand_1"].in_cond_branch


def test_an_early_exit_inside_of_a_submodule_is_found() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.max() > 10:
                return x.neg()
            return x + 1

    history = log_forward_pass(nn.Sequential(Block(), Block()), torch.full((1,), 10.0))
    assert [c.branch for c in history.conditions] == ["else", "then"]
    assert history["neg_1"].conditional_branches == [(history.conditions[1].layer_label, "then")]
    assert history["add_1"].conditional_branches == []


def test_a_boolean_output_is_no_condition() -> None:
    class Any(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0).any()

    history: ModelHistory = log_forward_pass(Any(), torch.ones(2))
    assert not history.model_has_conditional_branching
    assert history.internally_terminated_bool_layers == []
