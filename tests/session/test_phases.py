"""Phases name stretches of the run, by a block or pass by pass."""

import pytest
import torch
from torch import nn

from fastrec import FastrecError, Recorder


def agent() -> nn.ModuleDict:
    return nn.ModuleDict({"actor": nn.Linear(4, 2), "critic": nn.Linear(4, 1)})


def test_a_function_names_the_phase_of_each_pass_by_its_entry() -> None:
    net, x = agent(), torch.zeros(1, 4)
    with Recorder(net, keep_op="linear") as rec:
        with rec.phase("outer"):
            net["actor"](x)
            with rec.phase(lambda entry: f"for_{entry}"):
                net["critic"](x)
                net["actor"](x)
                with rec.phase("inner"):
                    net["critic"](x)
            net["actor"](x)
    assert [r.ctx.phase for r in rec.recording] == ["outer", "for_critic", "for_actor", "inner", "outer"]


def test_a_step_is_marked_in_a_phase_with_a_name() -> None:
    net, x = agent(), torch.zeros(1, 4)
    with Recorder(net, keep_op="linear") as rec, rec.phase(lambda entry: "rollout"):
        for _ in range(2):
            net["actor"](x)
            with rec.phase("rollout"):
                rec.step()
        with pytest.raises(FastrecError, match=r"mark it inside `with rec.phase\('rollout'\):`"):
            rec.step()
    assert [r.ctx.step for r in rec.recording] == [0, 1]


def test_a_phase_ends_with_its_block_also_when_an_exception_leaves_it() -> None:
    net, x = agent(), torch.zeros(1, 4)
    with Recorder(net, keep_op="linear") as rec:
        with pytest.raises(ZeroDivisionError), rec.phase(lambda entry: "inside"):
            raise ZeroDivisionError
        net["actor"](x)
    assert [r.ctx.phase for r in rec.recording] == [""]


def test_a_phase_that_was_entered_by_hand_and_dropped_does_not_end_another_one() -> None:
    net, x = agent(), torch.zeros(1, 4)
    with Recorder(net, keep_op="linear") as rec:
        by_hand = rec.phase("by hand")
        by_hand.__enter__()
        with rec.phase("block"):
            del by_hand
            net["actor"](x)
        net["actor"](x)
    assert [r.ctx.phase for r in rec.recording] == ["block", "by hand"]


def test_what_is_no_phase_is_refused() -> None:
    net = agent()
    with Recorder(net, keep_op="linear") as rec:
        with pytest.raises(FastrecError, match=r"phase\(3\): give a name, such as 'rollout', or a function"):
            rec.phase(3)  # type: ignore[arg-type]
        with rec.phase(lambda entry: None):  # type: ignore[arg-type, return-value]
            with pytest.raises(FastrecError, match="returned None for the entry 'actor'; return a name"):
                net["actor"](torch.zeros(1, 4))
        net["actor"](torch.zeros(1, 4))
    assert rec.recording.n_passes == 1
