"""Episodes: cut from the steps of each environment, with the values of each step."""

import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastrec
from fastrec import Recorder, Recording
from fastrec._errors import OptionError, RaggedError, RecordKeyError, StepError
from fastrec.sinks import RAMSink
from tests.contracts.sink import Rig


def played(ended: list[list[int]], autoreset: str | None = None, cut: list[list[int]] | None = None) -> Rig:
    """A loop in which environments end where `ended` says so; a value holds 100 times the step plus the env."""
    rig = Rig(RAMSink(), {"autoreset": autoreset})
    for step, row in enumerate(ended):
        rig.one_pass(("a", 100.0 * step + torch.arange(len(row))[:, None].float()), step=step)
        truncated = np.array(cut[step] if cut else [0] * len(row), bool)
        rewards = np.arange(len(row)) + 10.0 * step
        rig.mark(step, terminated=np.array(row, bool), truncated=truncated, reward=rewards, total=float(step))
    return rig


def facts(recording: Recording) -> list[Any]:
    return [(e.env, e.start_step, e.stop_step, e.terminated, e.truncated) for e in recording.episodes()]


def test_episodes_begin_after_an_end_and_may_be_open() -> None:
    rig = played([[0, 0], [1, 0], [0, 0], [0, 1]], "same_step", cut=[[0, 1], [0, 0], [0, 0], [0, 0]])
    assert facts(rig.recording()) == [
        (0, 0, 2, True, False),
        (1, 0, 1, False, True),
        (1, 1, 4, True, False),
        (0, 2, 4, False, False),
    ]


def test_rows_that_only_reset_belong_to_no_episode() -> None:
    rig = played([[0, 1], [1, 0], [0, 0], [0, 0]], "next_step")
    assert facts(rig.recording()) == [
        (0, 0, 2, True, False),
        (1, 0, 1, True, False),
        (1, 2, 4, False, False),
        (0, 3, 4, False, False),
    ]


def test_an_end_in_the_last_row_leaves_no_empty_episode() -> None:
    for autoreset in ("same_step", "next_step"):
        assert facts(played([[0], [1]], autoreset).recording()) == [(0, 0, 2, True, False)]
    assert facts(played([[1], [0]], "next_step").recording()) == [(0, 0, 1, True, False)]


def test_an_episode_has_the_values_and_columns_of_its_environment() -> None:
    rig = played([[0, 0], [1, 0], [0, 0], [0, 1]], "same_step")
    episode = rig.recording().episodes()[-1]
    assert (episode.env, episode.length, len(episode), episode.phase) == (0, 2, 2, "")
    assert episode["a"].tolist() == [[200.0], [300.0]]
    assert {n: c.tolist() for n, c in episode.columns.items()} == {
        "terminated": [False, False],
        "truncated": [False, False],
        "reward": [20.0, 30.0],
        "total": [2.0, 3.0],
    }
    assert repr(episode) == "<Episode of env 0: steps 2 to 3, open>"
    assert repr(rig.recording().episodes()[0]) == "<Episode of env 0: steps 0 to 1, terminated>"


def test_done_alone_tells_when_episodes_end() -> None:
    rig = Rig(RAMSink())
    for step in range(4):
        rig.one_pass(torch.full((3,), float(step)), step=step)
        rig.mark(step, done=step == 1)
    first, second = rig.recording().episodes()
    assert (first.terminated, first.length, second.terminated, second.length) == (True, 2, False, 2)
    assert second["a"].tolist() == [[2.0] * 3, [3.0] * 3]


def test_a_single_environment_may_have_a_batch_of_one() -> None:
    rig = Rig(RAMSink())
    for step in range(2):
        rig.one_pass(torch.full((1, 3), float(step)), step=step)
        rig.mark(step, terminated=False, truncated=False)
    assert rig.recording().episodes()[0]["a"].shape == (2, 3)


def test_phases_have_episodes_of_their_own() -> None:
    rig = Rig(RAMSink())
    rig.catalog.phases.add("eval")
    for phase, envs in ((0, 2), (1, 1), (0, 2)):
        for step in range(2):
            number = step + 2 * (rig.n_begun >= 4)
            rig.one_pass(torch.full((envs, 1), float(number)), phase=phase, step=number if phase == 0 else step)
            rig.mark(number if phase == 0 else step, phase, terminated=[False] * envs)
    found = [(e.phase, e.env, e.length) for e in rig.recording().episodes()]
    assert found == [("", 0, 4), ("", 1, 4), ("eval", 0, 2)]
    assert rig.recording().select(phase="eval").episodes()[0].phase == "eval"


def test_selected_steps_have_the_episodes_between_them() -> None:
    recording = played([[0], [1], [0], [0], [1], [0]], "next_step").recording()
    assert facts(recording.select(steps=slice(2, 5))) == [(0, 3, 5, True, False)]
    with pytest.raises(StepError, match="episodes need every step from first to last"):
        recording.select(steps={0, 2}).episodes()


def test_missing_steps_and_columns_are_errors() -> None:
    rig = Rig(RAMSink())
    rig.one_pass(torch.zeros(2, 1))
    with pytest.raises(StepError, match=r"none was marked; call rec.step\(terminated=..., truncated=...\)"):
        rig.recording().episodes()
    rig.mark(0, reward=[1.0, 2.0])
    with pytest.raises(StepError, match=r"the steps have no such column; call rec.step\(terminated=..., truncated=..."):
        rig.recording().episodes()
    rig.mark(1, terminated=[True, False])
    with pytest.raises(StepError, match="step 0 was marked without 'terminated'; give it every time"):
        rig.recording().episodes()


def test_ends_of_different_shapes_are_errors() -> None:
    rig = Rig(RAMSink())
    rig.mark(0, terminated=[True, False], truncated=False)
    with pytest.raises(StepError, match=r"differ in shape: terminated \(2,\) and truncated \(\); give one value"):
        rig.recording().episodes()


def test_more_or_less_than_one_firing_per_step_is_an_error() -> None:
    rig = played([[0, 0], [0, 0]])
    rig.one_pass(("b", torch.zeros(2, 1)), ("a", torch.zeros(5, 1)), step=2)
    rig.one_pass(("a", torch.ones(2, 1)), step=2)
    rig.mark(2, terminated=[False] * 2, truncated=[False] * 2)
    episode = rig.recording().episodes()[0]
    with pytest.raises(StepError, match=r"'a' fired 2 times in step 2, and one firing per step is needed; .*batch="):
        episode["a"]
    with pytest.raises(StepError, match="'b' fired 0 times in step 0"):
        episode["b"]
    with pytest.raises(RecordKeyError, match="nothing under 'c'"):
        episode["c"]
    selected = rig.recording().select(batch=2).episodes()[1]
    assert selected["a"].tolist() == [[1.0], [101.0], [1.0]]


def test_values_without_a_row_per_environment_are_errors() -> None:
    rig = Rig(RAMSink())
    for step in range(2):
        rig.one_pass(("a", torch.zeros(3 + step, 1)), ("b", torch.zeros(3, 1)), ("c", torch.zeros(())), step=step)
        rig.mark(step, terminated=[False] * 2)
    episode = rig.recording().episodes()[0]
    with pytest.raises(RaggedError, match="'a' has values of shapes"):
        episode["a"]
    for key in ("b", "c"):
        with pytest.raises(StepError, match=rf"'{key}' has values of shape .*one row per environment \(2 of them\)"):
            episode[key]


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=1, max_size=30), st.booleans())
def test_episodes_are_those_that_a_loop_over_the_rows_finds(ended: list[list[bool]], next_step: bool) -> None:
    recording = played([[int(e) for e in row] for row in ended], "next_step" if next_step else "same_step").recording()
    expected = set()
    for env in range(2):
        rows: list[int] = []
        resets = False
        for step, row in enumerate(ended):
            if resets:
                resets = False
                continue
            rows.append(step)
            if row[env]:
                expected.add((env, tuple(rows)))
                rows, resets = [], next_step
        if rows:
            expected.add((env, tuple(rows)))
    assert {(e.env, tuple(range(e.start_step, e.stop_step))) for e in recording.episodes()} == expected
    for episode in recording.episodes():
        steps = range(episode.start_step, episode.stop_step)
        assert episode["a"][:, 0].tolist() == [100.0 * step + episode.env for step in steps]


@given(
    st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=1, max_size=20),
    st.sets(st.integers(0, 20)),
    st.booleans(),
)
def test_sessions_have_the_episodes_that_each_has_alone(
    ended: list[list[bool]], starts: set[int], next_step: bool
) -> None:
    autoreset = "next_step" if next_step else "same_step"
    rows = [[int(e) for e in row] for row in ended]
    source: Any = played(rows, autoreset).sink.source()
    source.phase_steps = [msgspec.structs.replace(table, starts=tuple(starts)) for table in source.phase_steps]
    edges = [0, *sorted(start for start in starts if 0 < start < len(rows)), len(rows)]
    expected = [
        (env, first + start, first + stop, done, cut)
        for first, end in zip(edges, edges[1:], strict=False)
        for env, start, stop, done, cut in facts(played(rows[first:end], autoreset).recording())
    ]
    found = facts(Recording(source))
    assert len(found) == len(expected) and set(found) == set(expected)


def test_one_environment_has_its_vectors_whole() -> None:
    policy = torch.nn.Linear(4, 6)
    with torch.no_grad(), Recorder(policy, keep_op="linear") as rec:
        for t in range(6):
            policy(torch.ones(4))
            rec.step(reward=float(t), terminated=t % 3 == 2, truncated=False, action=np.arange(6.0) + t)
    episodes = rec.recording.episodes()
    assert [episode.columns["action"].tolist() for episode in episodes] == [
        [[k + t for k in range(6)] for t in range(start, start + 3)] for start in (0, 3)
    ]
    assert rec.recording.to_xarray(["linear_1"], by="step")["action"].dims == ("step", "action_1")


@pytest.mark.parametrize("sink", [None, "run.h5"])
def test_each_environment_has_its_own_rows_of_vectors(sink: str | None, tmp_path: Path) -> None:
    policy = torch.nn.Linear(4, 6)
    path = None if sink is None else tmp_path / sink
    with torch.no_grad(), Recorder(policy, keep_op="linear", sink=path, autoreset="same_step") as rec:
        for t in range(4):
            policy(torch.ones(3, 4))
            ends = np.array([t == 1, False, False])
            action = np.arange(18.0).reshape(3, 6) + 100 * t
            rec.step(reward=np.ones(3), terminated=ends, truncated=np.zeros(3, bool), action=action, lr=0.5)
    recording = rec.recording if path is None else fastrec.load(path)
    assert recording.steps["action"].shape == (4, 3, 6)
    for episode in recording.episodes():
        steps = range(episode.start_step, episode.stop_step)
        expected = [(np.arange(18.0).reshape(3, 6)[episode.env] + 100 * t).tolist() for t in steps]
        assert episode.columns["action"].tolist() == expected
        assert episode.columns["lr"].tolist() == [0.5] * len(steps)


def test_environments_that_ended_need_a_word_about_how_they_reset() -> None:
    rig = played([[0, 0], [1, 0], [0, 0], [0, 1]])
    recording = rig.recording()
    with pytest.raises(StepError, match=r"ended in step 1, .*autoreset='next_step'.*autoreset='same_step'"):
        recording.episodes()
    with pytest.raises(StepError, match="autoreset"):
        recording.rows("a", by="sample").episode  # noqa: B018
    for autoreset in ("next_step", "same_step"):
        told = played([[0, 0], [1, 0], [0, 0], [0, 1]], autoreset).recording()
        assert [repr(e) for e in recording.episodes(autoreset=autoreset)] == [repr(e) for e in told.episodes()]
        assert told.episodes(autoreset=autoreset)
    with pytest.raises(OptionError, match="was recorded with autoreset='same_step'; leave autoreset= out"):
        told.episodes(autoreset="next_step")
    with pytest.raises(OptionError, match=r"episodes\(autoreset='never'\): give autoreset='next_step'"):
        told.episodes(autoreset="never")  # type: ignore[arg-type]


def test_ends_that_leave_nothing_open_need_no_word() -> None:
    assert len(played([[0, 0], [0, 0], [1, 1]]).recording().episodes()) == 2  # in the last step
    assert len(played([[0, 0], [1, 0], [0, 0]]).recording().episodes()) == 3  # of one environment, which was warned of
    # A step that only resets can't end, so the second of two ends running is of an episode of one step.
    assert facts(played([[0], [1], [1], [0]]).recording()) == [
        (0, 0, 2, True, False),
        (0, 2, 3, True, False),
        (0, 3, 4, False, False),
    ]


@pytest.mark.parametrize("columns", [("terminated", "truncated"), ("done",), ("truncated",)])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_the_end_of_the_block_warns_where_nobody_said_how_environments_reset(
    columns: tuple[str, ...], n_envs: int
) -> None:
    def run(ends: list[int], **options: Any) -> list[str]:
        policy = torch.nn.Linear(4, 2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with torch.no_grad(), Recorder(policy, keep_op="linear", **options) as rec:
                for end in ends:
                    policy(torch.ones(n_envs, 4))
                    rec.step(**{name: np.array([end] + [0] * (n_envs - 1), bool) for name in columns})
        return [str(warning.message) for warning in caught]

    (message,) = run([0, 1, 0])
    assert "next_step" in message and "same_step" in message
    assert not run([0, 1, 0], autoreset="next_step")
    assert not run([0, 0, 1])
    assert not run([0, 1, 0, 1, 1])
