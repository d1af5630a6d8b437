"""describe() says of each time bin what its values say, from RAM and from files, and reads no more than it has to."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastrec import CaptureSpec, Recorder, Recording, load, record
from fastrec._errors import OptionError
from fastrec.report import MEASURES, RunStatistics
from tests.report import naive


class Wide(nn.Module):
    """Linear and convolution, activations, and a value that is no tensor of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.conv(x))
        return y > 0.5


def run(sink: Any = None, passes: int = 30) -> Recorder:
    torch.manual_seed(0)
    model = Wide()
    with torch.no_grad(), Recorder(model, keep_op=True, sink=sink, autoreset="same_step") as rec:
        for i in range(passes):
            with rec.phase("rollout"):
                model(torch.randn(2 + i % 3, 1, 5, 5) * i)
                rec.step(reward=float(i), terminated=np.array([i % 10 == 9, i == 4]), truncated=np.zeros(2, bool))
            with rec.phase("train"):
                model(torch.randn(8, 1, 5, 5))
    return rec


@pytest.fixture(scope="module")
def recording() -> Recording:
    return run().recording


def assert_equal(found: RunStatistics, expected: RunStatistics) -> None:
    assert list(found) == list(expected)
    for name, site in expected.items():
        for measure in MEASURES:
            assert found[name][measure.name] == pytest.approx(site[measure.name], rel=1e-9, nan_ok=True)
        assert (found[name].notes, found[name].whole) == (site.notes, pytest.approx(site.whole, nan_ok=True))
    for column in ("first_pass", "last_mark", "episode_ends"):
        assert getattr(found.time, column).tolist() == getattr(expected.time, column).tolist()


def test_each_bin_says_what_its_values_say(recording: Recording) -> None:
    statistics = recording.describe(bins=7)
    time = statistics.time
    assert len(time) == 7 and int(time.passes.sum()) == 60
    for name, site in statistics.items():
        layer_type = site.site.layer_type
        axis = 1 if site.units is not None else -1
        vectors = []
        for bin, (first, last) in enumerate(zip(time.first_pass, time.last_pass, strict=True)):
            part = recording.select(passes=range(first, last + 1))
            values = [r.activation for r in part[name] if r.activation is not None]
            saturating = layer_type if layer_type in ("tanh", "sigmoid") else ""
            expected = naive.measures(values, axis, layer_type in ("relu", "tanh", "sigmoid"), saturating)
            expected.pop("rank", None)
            vectors.append(naive.vector(values, axis))
            expected["drift"] = naive.cosine(vectors[-1], vectors[0])
            for measure, value in expected.items():
                assert site[measure][bin] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), (name, measure, bin)


def test_a_file_says_what_ram_says(tmp_path: Path, recording: Recording) -> None:
    run(tmp_path / "run.h5")
    assert_equal(load(tmp_path / "run.h5").describe(), recording.describe())


def test_a_selection_is_described_alone(recording: Recording) -> None:
    statistics = recording.select(phase="train", passes=slice(20, 40)).describe(bins=4)
    assert set(statistics.time.phases) == {"train"} and statistics.time.passes.sum() == 10
    assert {site.records for site in statistics.values()} == {10}


def test_steps_episodes_and_phases_are_told_of_each_bin(recording: Recording) -> None:
    time = recording.describe(bins=6).time
    assert time.first_mark.tolist() == [0, 5, 10, 15, 20, 25] and time.last_mark.tolist() == [4, 9, 14, 19, 24, 29]
    assert time.episode_ends.tolist() == [1, 1, 0, 1, 0, 1]
    assert {name: counts.tolist() for name, counts in time.phases.items()} == {"rollout": [5] * 6, "train": [5] * 6}
    assert (np.diff(time.started) > 0).all() and (time.ended > time.started).all()


def test_there_are_no_more_bins_than_passes() -> None:
    statistics = record(nn.ReLU(), torch.ones(2, 3), keep_op=True).describe()
    assert len(statistics.time) == 1 and statistics["/relu"]["mean"].tolist() == [1.0]


def test_a_site_that_did_not_run_in_a_bin_has_no_numbers_there() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with Recorder(model, keep_op=True) as rec:
        for i in range(10):
            model(torch.ones(1, 2)) if i < 5 else model[0](torch.ones(1, 2))
    relu = rec.recording.describe(bins=2)["1/relu"]
    assert np.isfinite(relu["zeros"]).tolist() == [True, False]


def test_a_recording_without_records_has_no_sites(recording: Recording) -> None:
    statistics = recording.select(passes=slice(500, 600)).describe()
    assert len(statistics) == 0 and len(statistics.time) == 0 and "0 sites" in repr(statistics)
    assert "0 sites" in statistics._repr_html_() and len(statistics.to_pandas()) == 0


def test_contexts_alone_have_no_numbers() -> None:
    recording = record(nn.ReLU(), torch.ones(2, 3), keep_op=True, capture=CaptureSpec(save_activation=False))
    site = recording.describe()["/relu"]
    assert (site.records, site.values, site.notes) == (1, 0, ["no values were recorded"])


def test_transforms_are_described_where_the_values_were_not_kept() -> None:
    spec = CaptureSpec(transform=lambda value: value.mean(0) + 5, save_raw=False)
    site = record(nn.ReLU(), torch.zeros(4, 3), keep_op=True, capture=spec).describe()["/relu"]
    assert (site.whole["mean"], site.units) == (5.0, 3)


def test_attached_values_are_described() -> None:
    recording = record(nn.Linear(3, 2), torch.ones(4, 3), keep_op=True, train_mode=True)
    assert recording.describe()["/linear"].units == 2


def test_values_that_are_not_finite_are_told_with_their_step() -> None:
    with Recorder(nn.ReLU(), keep_op=True) as rec:
        for i in range(20):
            rec.log(torch.tensor([1.0, math.inf if i == 12 else 2.0]))
            if i % 2:
                rec.step()
    statistics = rec.recording.describe(bins=4)
    site = statistics["/relu"]
    assert str(site.bad) == "first infinity in step 6 (pass 12)" and site["inf"].tolist() == [0, 0, 1, 0]
    assert site["max"].tolist() == [2.0] * 4
    assert "'/relu': first infinity in step 6 (pass 12)" in repr(statistics)
    assert statistics.alarms == [("/relu", site.bad)]


def test_ranks_take_some_bins_where_there_are_many() -> None:
    with Recorder(nn.ReLU(), keep_op=True) as rec:
        for _ in range(120):
            rec.log(torch.randn(6, 4))
    site = rec.recording.describe(bins=120)["/relu"]
    assert np.isfinite(site["rank"]).sum() == 40 and np.isfinite(site["rank"])[::3].all()
    assert np.isnan(rec.recording.describe(ranks=False)["/relu"]["rank"]).all()


def test_ranks_of_many_rows_are_of_rows_spread_over_the_bin() -> None:
    with Recorder(nn.Identity(), keep_module=True) as rec:
        for i in range(8):
            x = torch.zeros(1024, 8)
            x[:, i] = 1  # only all of the passes together have all of the directions
            rec.log(x)
    (site,) = rec.recording.describe(bins=1).values()
    assert site["rank"].tolist() == [8]


def test_the_progress_goes_up_to_the_bytes_there_are(recording: Recording) -> None:
    told: list[tuple[int, int]] = []
    recording.describe(progress=lambda done, total: told.append((done, total)))
    done = [d for d, _ in told]
    assert done == sorted(done) and told[-1][0] == told[-1][1] == sum(f.nbytes for f in recording.sites.values())


@pytest.mark.parametrize("bins", [0, -1, 2.5, True, "many"])
def test_bins_that_are_none_are_refused(recording: Recording, bins: Any) -> None:
    with pytest.raises(OptionError, match=r"describe\(bins=.*\): give a whole number from 1 up"):
        recording.describe(bins=bins)


def test_an_unknown_option_names_those_that_there_are(recording: Recording) -> None:
    with pytest.raises(OptionError, match="describe has no option 'bin'; did you mean 'bins'"):
        recording.describe(bin=3)


def test_the_table_shows_the_first_and_the_last_bin(recording: Recording) -> None:
    text = repr(recording.describe())
    head, columns, *lines = text.splitlines()
    assert head == "8 sites, 480 records in 50 time bins, passes 0 to 59"
    assert columns.split()[:3] == ["site", "records", "units"]
    assert len(lines) == 8 and any("→" in line for line in lines)


def test_the_frame_has_a_row_for_each_site_and_bin(recording: Recording) -> None:
    frame = recording.describe(bins=5).to_pandas()
    assert len(frame) == 40 and list(frame.columns)[:3] == ["site", "first_pass", "last_pass"]
    assert set(frame.columns) >= {measure.name for measure in MEASURES}
    assert frame[frame.site == "conv.1/relu"].dead_units.notna().all()


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    import tracemalloc

    model = nn.Identity()
    with torch.no_grad(), Recorder(model, keep_module=True, sink=tmp_path / "run.h5") as rec:
        values = torch.randn(256, 256)
        for _ in range(300):  # 75 MiB
            rec.log(values)
    recording = load(tmp_path / "run.h5")
    recording.describe(bins=2)
    tracemalloc.start()
    recording.describe()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 30 << 20
