"""Steps and episodes of a recording that was continued: none goes from one session into the next."""

from pathlib import Path
from typing import Any

import pytest
import torch

import fastrec
from fastrec import Recorder, Recording
from fastrec._errors import OptionError, StepError
from fastrec.files import merge, repack
from fastrec.sinks import HDF5Sink

MODEL = torch.nn.Identity()
ENDED = [[[0, 0], [1, 0], [0, 0]], [[0, 1], [0, 0]]]
"""Which of two environments terminated in each step, session by session."""


def session(path: Path, ended: list[list[int]], first: int, *, left: int = 0, **options: Any) -> None:
    """Steps whose values are 10 times the step plus the environment, and passes after them that no step closes."""
    with Recorder(
        MODEL, keep_module=True, sink=HDF5Sink(path, append=True), **{"autoreset": "same_step", **options}
    ) as rec:
        for step, row in enumerate(ended, first):
            MODEL(10.0 * step + torch.arange(len(row))[:, None])
            rec.step(terminated=[bool(end) for end in row], truncated=[False] * len(row))
        for _ in range(left):
            MODEL(torch.full((len(ended[0]), 1), -1.0))


def continued(path: Path, **options: Any) -> Path:
    session(path, ENDED[0], 0, left=1, **options)
    session(path, ENDED[1], 3, **options)
    return path


def describe_episodes(recording: Recording) -> list[tuple[int, int, int, bool]]:
    return [(e.env, e.start_step, e.stop_step, e.terminated) for e in recording.episodes()]


EXPECTED = [(0, 0, 2, True), (1, 0, 3, False), (0, 2, 3, False), (0, 3, 5, False), (1, 3, 4, True), (1, 4, 5, False)]


def check(recording: Recording) -> None:
    assert describe_episodes(recording) == EXPECTED
    for episode in recording.episodes():
        steps = range(episode.start_step, episode.stop_step)
        assert episode["module:"][:, 0].tolist() == [10 * step + episode.env for step in steps]


def test_an_open_episode_ends_with_its_session(tmp_path: Path) -> None:
    recording = fastrec.load(continued(tmp_path / "run.h5"))
    check(recording)
    assert repr(recording.episodes()[1]) == "<Episode of env 1: steps 0 to 2, open>"
    assert describe_episodes(recording.select(steps=slice(1, 4))) == [
        (0, 1, 2, True),
        (1, 1, 3, False),
        (0, 2, 3, False),
        (0, 3, 4, False),
        (1, 3, 4, True),
    ]


def test_what_no_step_closed_belongs_to_none(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    recording = fastrec.load(continued(path))
    assert [record.ctx.step for record in recording] == [0, 1, 2, None, 3, 4]
    assert recording.select(steps=3).stack("module:")[:, :, 0].tolist() == [[30, 31]]
    assert recording.select(steps={-6, -1}).stack("module:")[:, :, 0].tolist() == [[40, 41]]
    assert recording.select(steps=range(-1, 1)).n_passes == 1
    assert recording.to_xarray("module:", by="step")["module:"].shape == (5, 2, 1)
    session(path, ENDED[1], 5, left=2)
    assert [record.ctx.step for record in fastrec.load(path)] == [0, 1, 2, None, 3, 4, 5, 6, 7, 7]


def test_a_session_begins_with_no_row_that_only_resets(tmp_path: Path) -> None:
    path, options = tmp_path / "run.h5", {"autoreset": "next_step"}
    session(path, [[0], [1]], 0, **options)
    session(path, [[1], [0], [0]], 2, **options)
    recording = fastrec.load(path)
    assert recording.steps["reset_only"].tolist() == [[False], [False], [False], [True], [False]]
    assert describe_episodes(recording) == [(0, 0, 2, True), (0, 2, 3, True), (0, 4, 5, False)]


def test_sessions_stay_apart_in_what_is_made_of_them(tmp_path: Path) -> None:
    path, other = continued(tmp_path / "run.h5"), continued(tmp_path / "other.h5")
    repack(path, to=tmp_path / "packed.h5")
    repack(tmp_path / "packed.h5", to=tmp_path / "again.h5")
    fastrec.recover(path, to=tmp_path / "recovered.h5")
    for name in ("packed", "again", "recovered"):
        check(fastrec.load(tmp_path / f"{name}.h5"))
    session(tmp_path / "packed.h5", ENDED[0], 5)
    episodes = describe_episodes(fastrec.load(tmp_path / "packed.h5"))
    assert episodes == [*EXPECTED, *((env, a + 5, b + 5, end) for env, a, b, end in EXPECTED[:3])]
    for virtual in (False, True):
        merged = merge([path, other], tmp_path / f"merged{virtual}.h5", virtual=virtual).path
        for rank in fastrec.load(merged).ranks.values():
            check(rank)
        assert describe_episodes(fastrec.load(merged)) == EXPECTED * 2


def test_sessions_stay_apart_while_the_last_one_grows(tmp_path: Path) -> None:
    path = continued(tmp_path / "run.h5")
    live = fastrec.load(path, live=True)
    with Recorder(MODEL, keep_module=True, sink=HDF5Sink(path, append=True), autoreset="same_step") as rec:
        MODEL(torch.tensor([[50.0], [51.0]]))
        rec.step(terminated=[True, False], truncated=[False, False])
        rec.flush()
        assert live.refresh() == 1
        assert describe_episodes(live) == [*EXPECTED, (0, 5, 6, True), (1, 5, 6, False)]
        assert describe_episodes(fastrec.load(path)) == describe_episodes(live)
    assert describe_episodes(fastrec.load(path)) == describe_episodes(live)


def test_phases_count_the_steps_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    for phases in (["a", "b"], ["b"], ["b", "a"]):
        with Recorder(MODEL, keep_module=True, sink=HDF5Sink(path, append=True)) as rec:
            for phase in phases:
                with rec.phase(phase):
                    for _ in range(2):
                        rec.log(torch.zeros(1))
                        rec.step(done=False)
    found = [(e.phase, e.start_step, e.stop_step) for e in fastrec.load(path).episodes()]
    assert found == [("a", 0, 2), ("a", 2, 4), ("b", 0, 2), ("b", 2, 4), ("b", 4, 6)]


def test_step_columns_keep_their_shape_in_the_next_session(tmp_path: Path) -> None:
    path = continued(tmp_path / "run.h5")
    with pytest.raises(StepError, match=r"'terminated' has shape \(3,\) now and had \(2,\) before; give it one shape"):
        session(path, [[0, 0, 0]], 5)
    check(fastrec.load(path).select(passes=slice(0, 6)))


def test_a_session_that_would_not_mean_the_same_is_refused(tmp_path: Path) -> None:
    path = continued(tmp_path / "run.h5")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OptionError, match=r"with autoreset='same_step' and this session has autoreset='next_step'"):
        session(path, ENDED[0], 5, autoreset="next_step")
    assert sorted(tmp_path.iterdir()) == before
    for virtual in (False, True):
        merged = merge([path], tmp_path / f"merged{virtual}.h5", virtual=virtual).path
        with pytest.raises(OptionError, match="was merged of several recordings, and only one can be continued"):
            session(Path(merged), ENDED[0], 5)
