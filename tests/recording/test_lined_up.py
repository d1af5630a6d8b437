"""Rows that line up with steps, also where a key fired not at all or several times; lists of keys; samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastrec
from fastrec import FastrecError, Recorder, Recording
from fastrec._errors import OptionError, RaggedError, RecordKeyError, StepError
from fastrec.sinks import RAMSink


def model_of(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


@pytest.fixture
def sometimes(tmp_path: Path) -> tuple[list[Recording], nn.Sequential]:
    """Ten steps with two environments: every third never asked the network, and step 5 asked it twice."""
    model = model_of()
    with (
        torch.no_grad(),
        Recorder(
            model,
            keep_op="tanh",
            keep_module="2",
            sink=[RAMSink(), str(tmp_path / "a.h5")],
            autoreset="same_step",
        ) as rec,
    ):
        for t in range(10):
            for turn in range(t % 3 and (2 if t == 5 else 1)):
                model(torch.full((2, 4), t + turn / 2))
            rec.step(reward=np.full(2, t), terminated=np.array([t == 4, False]), truncated=np.zeros(2, bool))
    return [rec.recording, fastrec.load(tmp_path / "a.h5")], model


def expected(model: nn.Module, fill: float) -> torch.Tensor:
    with torch.no_grad():
        rows = [model(torch.full((2, 4), 5.5 if t == 5 else float(t))) for t in range(10)]
    return torch.stack([row if t % 3 else torch.full((2, 2), fill) for t, row in enumerate(rows)])


@pytest.mark.parametrize("fill", [float("nan"), -1, 0.5])
def test_steps_without_a_value_have_the_fill_and_of_several_the_last_counts(sometimes: Any, fill: float) -> None:
    recordings, model = sometimes
    for recording in recordings:
        stacked = recording.stack("2", by="step", fill=fill, firings="last")
        torch.testing.assert_close(stacked, expected(model, fill), equal_nan=True, rtol=0, atol=0)
        assert np.array_equal(recording.to_numpy("2", "step", fill=fill, firings="last"), stacked, equal_nan=True)


def test_episodes_and_tables_take_the_same_options(sometimes: Any) -> None:
    recordings, model = sometimes
    want = expected(model, -7.0)
    for recording in recordings:
        episodes = recording.episodes(fill=-7.0, firings="last")
        assert [(e.env, e.length) for e in episodes] == [(0, 5), (1, 10), (0, 5)]
        for episode in episodes:
            assert torch.equal(episode["2"], want[episode.start_step : episode.stop_step, episode.env])
        dataset = recording.to_xarray(["2"], by="step", fill=-7.0, firings="last")
        assert np.array_equal(dataset["2"].values, want) and dataset["reward"].shape == (10, 2)


def test_what_an_error_advises_is_enough(sometimes: Any) -> None:
    recording = sometimes[0][0]
    with pytest.raises(StepError, match=r"fired 0 times in step 0, .*; give fill=, such as float\('nan'\)"):
        recording.stack("2", by="step")
    with pytest.raises(StepError, match=r"fired 2 times in step 5, .* or take the last of them with firings='last'"):
        recording.stack("2", by="step", fill=float("nan"))
    assert recording.stack("2", by="step", fill=float("nan"), firings="last").shape == (10, 2, 2)
    with pytest.raises(StepError, match="fired 0 times in step 0"):
        recording.episodes(firings="last")[0]["2"]


def test_whole_numbers_take_no_other_fill() -> None:
    model = nn.Embedding(4, 3)
    with Recorder(model, keep_op="embedding", include_source_events=True, keep_module=None) as rec:
        model(torch.tensor([1]))
        rec.step()
        rec.step()
    assert rec.recording.stack("/embedding", by="step", fill=0).shape == (2, 1, 3)

    class Best(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.argmax(-1)

    best = Best()
    with Recorder(best, keep_op="argmax") as rec:
        best(torch.ones(2, 3))
        rec.step()
        rec.step()
    with pytest.raises(StepError, match="fill=nan can't stand among '/argmax', of torch.int64; give a whole number"):
        rec.recording.stack("/argmax", by="step", fill=float("nan"))
    assert rec.recording.stack("/argmax", by="step", fill=-1).tolist() == [[0, 0], [-1, -1]]


def test_a_filled_stack_stays_attached() -> None:
    model = model_of()
    with Recorder(model, keep_op="tanh", train_mode=True) as rec:
        model(torch.ones(2, 4))
        rec.step()
        rec.step()
    rec.recording.stack("1/tanh", by="step", fill=0).sum().backward()
    assert model[0].weight.grad is not None and model[0].weight.grad.abs().sum() > 0


def test_a_list_of_keys_gives_a_tensor_for_each_and_globs_stand_for_sites(sometimes: Any) -> None:
    for recording in sometimes[0]:
        stacks = recording.stack(["1/tanh", "2"])
        assert list(stacks) == ["1/tanh", "2"] and torch.equal(stacks["2"], recording.stack("2"))
        assert list(recording.stack(["*"])) == ["2"] and list(recording.stack(["**"])) == ["1/tanh", "2"]
        assert recording.keys() == ["1/tanh", "2"] and recording.entries == [""] and recording.phases == [""]
        with pytest.raises(RecordKeyError, match=r"no site matches '\*tanh'; .* '\*\*tanh' takes '1/tanh'"):
            recording.stack(["*tanh"])


def test_batches_of_several_sizes_are_stacked_by_sample() -> None:
    model, x = model_of(), torch.randn(10, 4)
    with torch.no_grad(), Recorder(model, keep_op="tanh") as rec:
        for part in x.split(4):
            model(part)
    with pytest.raises(RaggedError, match=r"recording.stack\('1/tanh', by='sample'\) for the rows of all batches"):
        rec.recording.stack("1/tanh")
    torch.testing.assert_close(rec.recording.stack("1/tanh", by="sample"), model[1](model[0](x)).detach())


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "no key": (
        lambda r: r.stack(None),
        RecordKeyError,
        r"stack\(None\): give a module's address, a site or a label, or",
    ),
    "no keys": (lambda r: r.stack([]), RecordKeyError, r"stack\(\[\]\)"),
    "rows of a list": (lambda r: r.rows(["2"]), RecordKeyError, r"rows\(\['2'\]\): give a module's address"),
    "by": (lambda r: r.stack("2", by="steps"), OptionError, "give by='pass', by='step' or by='sample'"),
    "fill": (lambda r: r.stack("2", by="step", fill="0"), OptionError, "fill='0'.: give a number"),
    "fill without steps": (lambda r: r.stack("2", fill=0), OptionError, "give by='step' with them"),
    "firings": (lambda r: r.episodes(firings="first"), OptionError, "give firings='last', or leave it out"),
    "column as a key": (
        lambda r: r.stack("reward"),
        RecordKeyError,
        r"column of the steps: recording.steps\['reward'\]",
    ),
    "column of an episode": (lambda r: r.episodes()[0]["reward"], RecordKeyError, r"episode.columns\['reward'\]"),
    "number of a step": (lambda r: r.steps[0], RecordKeyError, r"give the name of a column, .* 'reward', 'terminated'"),
    "number beyond": (lambda r: r[99], IndexError, "there is no record 99: there are 14 records"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_guesses_are_answered(sometimes: Any, name: str) -> None:
    ask, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        ask(sometimes[0][0])


def test_a_recording_is_read_where_it_was_written(tmp_path: Path) -> None:
    model = model_of()
    with torch.no_grad(), Recorder(model, keep_op="tanh", sink=str(tmp_path / "run.h5")) as rec:
        for n in range(1, 4):
            model(torch.ones(2, 4))
            assert rec.recording.stack("1/tanh").shape == (n, 2, 3)
        with pytest.raises(FastrecError, match=r"pop\(\) reads from RAM"):
            rec.pop()
    assert rec.recording.stack("1/tanh").shape == (3, 2, 3)


def test_start_and_stop_are_a_block() -> None:
    model = model_of()
    rec = Recorder(model, keep_op="tanh").start()
    model(torch.ones(2, 4))
    rec.stop()
    model(torch.ones(2, 4))
    assert rec.recording.n_passes == 1
    with pytest.raises(FastrecError, match="closed"):
        rec.stop()
