"""The marked steps as a table, and selections by step, phase, entry and pass."""

import numpy as np
import pytest

from fastrec._errors import OptionError, RecordKeyError, StepError
from fastrec.sinks import RAMSink
from tests.contracts.sink import Rig, number

ROLLOUT, EVAL = 1, 2


def rig_with(autoreset: str | None = None) -> Rig:
    rig = Rig(RAMSink(), {"autoreset": autoreset})
    assert (rig.catalog.phases.add("rollout"), rig.catalog.phases.add("eval")) == (ROLLOUT, EVAL)
    return rig


def loop(rig: Rig, steps: int, phase: int = ROLLOUT, envs: int = 2, passes: int = 1) -> None:
    """Steps of so many passes each, marked with a reward per environment."""
    for step in range(steps):
        for _ in range(passes):
            rig.one_pass(number(step, envs), phase=phase, step=step)
        rig.mark(step, phase, reward=[float(step)] * envs)


def test_steps_are_a_table_in_order_of_their_marks() -> None:
    rig = rig_with()
    loop(rig, 2)
    loop(rig, 1, EVAL)
    loop(rig, 1)
    steps = rig.recording().steps
    assert len(steps) == 4 and list(steps) == ["reward"] == list(steps.columns)
    assert steps.phase.tolist() == ["rollout", "rollout", "eval", "rollout"]
    assert steps.step.tolist() == [0, 1, 0, 0]
    assert steps["reward"].tolist() == [[0, 0], [1, 1], [0, 0], [0, 0]]
    assert repr(steps) == "<4 steps: reward>"
    with pytest.raises(RecordKeyError, match="no step was marked with a column 'rewards'; did you mean 'reward'"):
        steps["rewards"]


def test_a_recording_without_steps_has_an_empty_table() -> None:
    steps = rig_with().recording().steps
    assert len(steps) == 0 and not steps and list(steps) == [] and steps.step.tolist() == [] == steps.phase.tolist()


def test_a_column_that_some_marks_left_out_is_masked() -> None:
    rig = rig_with()
    rig.mark(0, ROLLOUT, reward=1.0, count=1)
    rig.mark(0, EVAL, reward=2.0)
    rig.mark(1, ROLLOUT, reward=3.0, count=2)
    steps = rig.recording().steps
    assert isinstance(steps["count"], np.ma.MaskedArray) and not isinstance(steps["reward"], np.ma.MaskedArray)
    assert steps["count"].mask.tolist() == [False, True, False] and steps["count"].compressed().tolist() == [1, 2]
    assert rig.recording().select(phase="rollout").steps["count"].tolist() == [1, 2]


def test_a_column_of_two_shapes_is_read_phase_by_phase() -> None:
    rig = rig_with()
    loop(rig, 2)
    loop(rig, 2, EVAL, envs=1)
    recording = rig.recording()
    with pytest.raises(StepError, match=r"\(2,\) in 'rollout' and \(1,\) in 'eval'; select\(phase=...\) first"):
        recording.steps["reward"]
    assert recording.select(phase="eval").steps["reward"].shape == (2, 1)


def test_passes_know_their_step_where_their_phase_has_some() -> None:
    rig = rig_with()
    rig.one_pass(number(0))
    loop(rig, 2, passes=2)
    rig.one_pass(number(9), phase=ROLLOUT, step=2)
    assert [record.ctx.step for record in rig.recording()] == [None, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        (1, [1]),
        (-1, [4]),
        (slice(1, 3), [1, 2]),
        (slice(-2, None), [3, 4]),
        (range(0, 5, 2), [0, 2, 4]),
        ({0, 3}, [0, 3]),
        (np.array([2]), [2]),
        (99, []),
    ],
    ids=str,
)
def test_steps_are_selected_by_number_slice_range_or_set(steps: object, wanted: list[int]) -> None:
    rig = rig_with()
    rig.one_pass(number(7))
    loop(rig, 5)
    selected = rig.recording().select(steps=steps)  # type: ignore[arg-type]
    assert [record.ctx.step for record in selected] == wanted
    assert selected.steps.step.tolist() == wanted


def test_a_selection_of_passes_has_their_steps() -> None:
    rig = rig_with()
    loop(rig, 5, passes=2)
    selected = rig.recording().select(passes=range(3, 7))
    assert [record.ctx.step for record in selected] == [1, 2, 2, 3] and selected.steps.step.tolist() == [1, 2, 3]


def test_phases_and_entries_are_selected_by_globs() -> None:
    rig = rig_with()
    rig.catalog.entries.add("actor.mean")
    loop(rig, 2)
    loop(rig, 3, EVAL)
    rig.one_pass(number(1), entry=1)
    recording = rig.recording()
    assert recording.select(phase="roll*").n_passes == 2 and recording.select(phase=["rollout", "eval"]).n_passes == 5
    assert recording.select(entry="actor.*").n_passes == 1
    assert recording.select(phase="eval").select(steps=0).n_passes == 1
    with pytest.raises(RecordKeyError, match=r"select\(phase='evaluate'\) matches nothing; did you mean 'eval'"):
        recording.select(phase="evaluate")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": "3"}, r"select\(passes='3'\)"),
        ({"passes": [True]}, "give a number, a slice, a range or a set of numbers"),
        ({"steps": 1.5}, r"select\(steps=1.5\)"),
        ({"grad": 1}, r"select\(grad=1\): give True or False"),
        ({"batch": True}, r"select\(batch=True\): give the size"),
        ({"phase": [3]}, "give a name, a glob or a list of them"),
        ({"phase": 3}, r"select\(phase=3\)"),
    ],
    ids=str,
)
def test_wrong_selections_are_errors(options: dict[str, object], message: str) -> None:
    rig = rig_with()
    loop(rig, 2)
    with pytest.raises(OptionError, match=message):
        rig.recording().select(**options)  # type: ignore[arg-type]


def test_a_batch_that_no_value_has_is_an_error_that_names_those_there_are() -> None:
    rig = rig_with()
    rig.one_pass(number(0, 8), number(0, 1))
    with pytest.raises(RecordKeyError, match=r"select\(batch=4\): no value has that many rows; there are \[1, 8\]"):
        rig.recording().select(batch=4)


def test_rows_that_only_reset_are_marked_under_next_step() -> None:
    rig = rig_with("next_step")
    ended = [[0, 0], [1, 0], [0, 1], [0, 0], [1, 0]]
    for step, row in enumerate(ended):
        rig.mark(step, ROLLOUT, terminated=np.array(row, bool), truncated=np.zeros(2, bool))
    reset_only = rig.recording().steps["reset_only"]
    assert reset_only.dtype == bool and reset_only.astype(int).tolist() == [[0, 0], [0, 0], [1, 0], [0, 1], [0, 0]]


def test_a_row_that_only_resets_has_no_end_of_its_own() -> None:
    rig = rig_with("next_step")
    for step, ended in enumerate([True, True, True, False]):
        rig.mark(step, ROLLOUT, terminated=ended)
    assert rig.recording().steps["reset_only"].tolist() == [False, True, False, True]


@pytest.mark.parametrize("autoreset", ["same_step", None])
def test_no_rows_only_reset_otherwise(autoreset: str | None) -> None:
    rig = rig_with(autoreset)
    rig.mark(0, ROLLOUT, terminated=[True, True])
    assert "reset_only" not in rig.recording().steps


def test_what_was_trimmed_still_tells_whether_the_first_row_only_resets() -> None:
    rig = rig_with("next_step")
    rig.mark(0, ROLLOUT, terminated=[True, False])
    assert isinstance(rig.sink, RAMSink)
    rig.sink.take()
    rig.mark(1, ROLLOUT, terminated=[False, False])
    assert rig.recording().steps["reset_only"].tolist() == [[True, False]]
