"""A recording reads the same from RAM and from files."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import fastrec
from fastrec import CaptureSpec, Recorder, Recording
from fastrec.events.context import FIELDS
from fastrec.sinks import HDF5Sink, RAMSink
from tests.contracts.sink import assert_same


class Agent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.critic = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, twice: bool = False) -> dict[str, Any]:
        value = self.critic(x).double()
        return {"out": self.actor(x * 2 if twice else x), "extra": (value, value > 0, torch.zeros(0, 2))}


def assert_equal(recording: Recording, expected: Recording) -> None:
    """All that can be read of two recordings is the same."""
    assert len(recording) == len(expected) and recording.n_passes == expected.n_passes
    assert [recording._view.info(i) for i in range(len(recording._view.passes))] == [
        expected._view.info(i) for i in range(len(expected._view.passes))
    ]
    for record, wanted in zip(recording, expected, strict=True):
        assert record._time == wanted._time and record._info == wanted._info and record._step == wanted._step
        for part in ("activation", "transformed_activation"):
            value = getattr(wanted, part)
            if value is None:
                assert getattr(record, part) is None
            else:
                assert_same(getattr(record, part), value)
    for i in range(0, len(recording), max(1, len(recording) // 8)):
        for field in FIELDS:
            assert text_of(recording[i].ctx, field) == text_of(expected[i].ctx, field), field
    for name in expected.sites:
        assert recording.sites[name] == expected.sites[name]
    assert (
        list(recording.steps) == list(expected.steps) and recording.steps.step.tolist() == expected.steps.step.tolist()
    )
    for name in expected.steps:
        assert np.ma.allequal(recording.steps[name], expected.steps[name])
        assert np.array_equal(np.ma.getmaskarray(recording.steps[name]), np.ma.getmaskarray(expected.steps[name]))
        assert recording.steps[name].dtype == expected.steps[name].dtype
    pd.testing.assert_frame_equal(recording.to_pandas().drop(columns="spec", errors="ignore"),
                                  expected.to_pandas().drop(columns="spec", errors="ignore"))  # fmt: skip
    assert recording.summary() == expected.summary() and recording.halted == expected.halted


def text_of(ctx: fastrec.RecordContext, field: str) -> str:
    return str(tried(lambda: getattr(ctx, field)))


def tried(make: Any) -> Any:
    try:
        return make()
    except fastrec.FastrecError as error:
        return f"{type(error).__name__}: {error}"


MOVES = ["call", "call", "call", "twice", "actor", "fail", "log", "step", "late step", "eval", "flush"]

moves = st.lists(
    st.tuples(
        st.sampled_from(MOVES),
        st.integers(1, 3),
    ),
    max_size=12,
)


@settings(max_examples=25, phases=[Phase.generate])
@given(moves=moves, segments=st.booleans(), capture=st.sampled_from(["plain", "half", "pooled", "both", "context"]))
def test_random_sessions_read_the_same(moves: list[tuple[str, int]], segments: bool, capture: str) -> None:
    captures = {
        "plain": CaptureSpec(),
        "half": CaptureSpec(dtype=torch.bfloat16),
        "pooled": CaptureSpec(transform=lambda t: t.float().sum(), save_raw=False),
        "both": CaptureSpec(transform=lambda t: t[:1]),
        "context": CaptureSpec(save_activation=False),
    }
    spec = captures[capture]
    agent = Agent()
    with tempfile.TemporaryDirectory() as folder:
        small = {"segment_bytes": 1 << 20, "flush_seconds": 0.001, "block_bytes": 64} if segments else {}
        file = HDF5Sink(Path(folder) / "run.h5", **small)
        options: Any = {"keep_op": True, "keep_module": True, "capture": spec, "autoreset": "next_step"}
        with Recorder(agent, sink=[RAMSink(), file], **options) as rec:
            agent(torch.ones(1, 3))
            for move, size in moves:
                play(rec, agent, move, size)
                if move == "flush":
                    rec.flush()
                    assert_equal(fastrec.load(file.path), rec.recording)
        recording, expected = fastrec.load(file.path), rec.recording
        assert_equal(recording, expected)
        for choice in ({"phase": "eval"}, {"batch": 2}, {"entry": "actor"}, {"steps": slice(0, 2)}, {"grad": True}):
            chosen = tried(lambda: expected.select(**choice))  # noqa: B023
            if isinstance(chosen, str):
                assert tried(lambda: recording.select(**choice)) == chosen  # noqa: B023
            else:
                assert_equal(recording.select(**choice), chosen)
        for key in ("actor", "tanh_1", "critic", "actor.0/linear", ":out.extra[2]"):
            wanted, got = tried(lambda: expected.stack(key)), tried(lambda: recording.stack(key))  # noqa: B023
            if isinstance(wanted, str):
                assert got.replace(" ", "")[:40] == wanted.replace(" ", "")[:40]
            else:
                assert_same(got, wanted)
        episodes = tried(expected.episodes), tried(recording.episodes)
        assert str(episodes[0]) == str(episodes[1])


def play(rec: Recorder, agent: Agent, move: str, size: int) -> None:
    x = torch.randn(size, 3)
    if move in ("call", "twice"):
        with torch.set_grad_enabled(size == 1):
            agent(x, move == "twice")
    elif move == "actor":
        agent.actor(x)
    elif move == "fail":
        with pytest.raises(RuntimeError):
            agent(torch.randn(size, 4))
    elif move == "log":
        rec.log(x, sample_id="x" * size if size > 1 else size)
    elif move in ("step", "late step"):
        late = {"late": size} if move == "late step" else {}
        rec.step(reward=float(size), terminated=[size == 1, False], truncated=[False, False], **late)
    elif move == "eval":
        with rec.phase("eval"):
            agent(x)
            rec.step(score=size)


def test_threads_record_the_same(tmp_path: Path) -> None:
    from threading import Thread

    agent, file = Agent(), HDF5Sink(tmp_path / "run.h5", segment_bytes=1 << 20, flush_seconds=0.001, block_bytes=512)

    def work() -> None:
        for i in range(150):
            if i % 7 == 3:
                with pytest.raises(RuntimeError):
                    agent(torch.randn(1, 5))
            else:
                agent(torch.randn(1 + i % 3, 3))

    with Recorder(agent, keep_module=True, sink=[RAMSink(), file]) as rec:
        threads = [Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert_equal(fastrec.load(file.path), rec.recording)
