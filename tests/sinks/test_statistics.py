"""StatisticsSink says what describe() says of all values, keeps none of them, and works beside other sinks."""

import gc
import math
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastrec import CaptureSpec, Recorder, load
from fastrec._errors import OptionError, RecordKeyError, SessionError, UnsupportedTensorError
from fastrec.predicates import every, op
from fastrec.report import RunStatistics
from fastrec.sinks import RAMSink, StatisticsSink
from tests.contracts.sink import Rig

INDEPENDENT_OF_BINS = ("zeros", "nan", "inf", "mean", "std", "min", "max", "dead_units", "dormant_0.025", "norm")


def assert_same_whole(found: RunStatistics, expected: RunStatistics) -> None:
    """The same of the whole run, however it is divided."""
    assert set(found) == set(expected)
    for name, site in expected.items():
        own = found[name]
        assert (own.records, own.units, own.unit_axis, own.bad) == (site.records, site.units, site.unit_axis, site.bad)
        for measure, value in site.whole.items():
            if measure not in ("rank", "drift"):
                assert own.whole[measure] == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), (name, measure)


def policy() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh())


def watched(sink: StatisticsSink, passes: int, **options: Any) -> RunStatistics:
    """Statistics of a run, compared with those of all its values."""
    model = policy()
    with (
        torch.no_grad(),
        Recorder(model, keep_op=True, sink=[RAMSink(), sink], autoreset="same_step", **options) as rec,
    ):
        for i in range(passes):
            model(torch.randn(3 + i % 2, 4) * i)
            rec.step(terminated=np.array([i % 10 == 9, False]), truncated=np.array([False, i % 25 == 24]))
    assert_same_whole(sink.statistics, rec.recording.describe())
    return sink.statistics


@pytest.mark.parametrize("passes", [1, 7, 8, 9, 100, 799, 801, 3000])
def test_it_says_what_describe_says(passes: int) -> None:
    statistics = watched(StatisticsSink(), passes)
    time = statistics.time
    assert int(time.passes.sum()) == passes and len(time) <= 100
    assert (time.first_pass[1:] == time.last_pass[:-1] + 1).all() and time.last_pass[-1] == passes - 1
    assert time.episode_ends.sum() == passes // 10 + passes // 25


@pytest.mark.parametrize("engine", ["eager", "static"])
def test_it_works_with_engines(engine: str) -> None:
    watched(StatisticsSink(), 50, engine=engine)


@pytest.mark.slow
def test_it_works_with_compiled_models() -> None:
    model, sink = policy(), StatisticsSink()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad(), Recorder(compiled, keep_op="relu", sink=[RAMSink(), sink]) as rec:
        for _ in range(20):
            compiled(torch.randn(3, 4))
    assert sink.statistics["1/relu"].records == 20
    assert_same_whole(sink.statistics, rec.recording.describe())


def test_each_bin_says_what_its_passes_say() -> None:
    model, sink = policy(), StatisticsSink(bins=10)
    with torch.no_grad(), Recorder(model, keep_op="relu", sink=[RAMSink(), sink]) as rec:
        for i in range(300):
            model(torch.randn(3, 4) * (1 + i))
    statistics = sink.statistics
    assert len(statistics.time) == 10  # of 32 passes each
    for bin, (first, last) in enumerate(zip(statistics.time.first_pass, statistics.time.last_pass, strict=True)):
        part = rec.recording.select(passes=range(first, last + 1)).describe(bins=1)["1/relu"]
        for name in INDEPENDENT_OF_BINS:
            assert statistics["1/relu"][name][bin] == pytest.approx(part[name][0], rel=1e-6), name


def test_ranks_are_those_of_describe() -> None:
    model, sink = policy(), StatisticsSink(bins=10, ranks=True)
    with torch.no_grad(), Recorder(model, keep_op="relu", sink=[RAMSink(), sink]) as rec:
        for _ in range(80):
            model(torch.randn(3, 4))
    expected = rec.recording.describe(bins=10)["1/relu"]["rank"]
    assert sink.statistics["1/relu"]["rank"].tolist() == expected.tolist()
    assert np.isnan(watched(StatisticsSink(), 80)["1/relu"]["rank"]).all()


def test_ranks_of_merged_bins_are_their_means() -> None:
    model, sink = policy(), StatisticsSink(bins=2, ranks=True)
    with torch.no_grad(), Recorder(model, keep_op="relu", sink=sink):
        for _ in range(200):
            model(torch.randn(3, 4))
    ranks = sink.statistics["1/relu"]["rank"]
    assert len(ranks) == 2 and ((ranks > 2) & (ranks <= 16)).all()


def test_it_can_be_read_while_the_loop_runs() -> None:
    model, sink = policy(), StatisticsSink()
    with pytest.raises(SessionError, match="belongs to no session yet; open one with"):
        _ = sink.statistics
    with torch.no_grad(), Recorder(model, keep_op="relu", sink=[RAMSink(), sink]) as rec:
        for i in range(50):
            model(torch.randn(3, 4))
            if i % 7 == 0:
                assert sink.statistics["1/relu"].records == i + 1
                assert_same_whole(sink.statistics, rec.recording.describe())


def test_every_looks_at_each_so_many_th_pass() -> None:
    model, sink = policy(), StatisticsSink(every=4)
    inputs = torch.randn(22, 3, 4)
    with torch.no_grad(), Recorder(model, keep_op="relu", sink=[RAMSink(), sink]) as rec:
        for x in inputs:
            model(x)
    assert len(rec.recording) == 22
    assert sink.statistics["1/relu"].records == 6
    chosen = rec.recording.select(passes=range(0, 22, 4)).describe()
    assert_same_whole(sink.statistics, chosen)


def test_the_predicate_every_leaves_passes_out_altogether() -> None:
    model, sink = policy(), StatisticsSink()
    with torch.no_grad(), Recorder(model, keep_op=op("relu") & every(5), sink=sink):
        for _ in range(20):
            model(torch.randn(3, 4))
    assert sink.statistics["1/relu"].records == 4


def test_it_keeps_no_values_however_long_the_run_is() -> None:
    model, sink = policy(), StatisticsSink(bins=20)
    with torch.no_grad(), Recorder(model, keep_op="relu", sink=sink):
        for _ in range(2000):
            model(torch.randn(3, 4))
        gc.collect()
        tracemalloc.start()
        for _ in range(6000):
            model(torch.randn(3, 4))
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert sink.statistics["1/relu"].records == 8000
    # What is kept of a bin may have been merged since; 8,000 values of 192 bytes would be 1.5 MB.
    assert grown < 400_000


def test_a_file_and_statistics_stand_side_by_side(tmp_path: Any) -> None:
    model, sink = policy(), StatisticsSink()
    with torch.no_grad(), Recorder(model, keep_op=True, sink=[tmp_path / "run.h5", sink]):
        for _ in range(30):
            model(torch.randn(3, 4))
    assert_same_whole(sink.statistics, load(tmp_path / "run.h5").describe())


def test_ways_to_one_site_are_put_together() -> None:
    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU())

        def forward(self, x: Tensor) -> Any:
            return self.body(x)

    model, sink = Agent(), StatisticsSink()
    with torch.no_grad(), Recorder(model, keep_op="relu", sink=[RAMSink(), sink]) as rec:
        for _ in range(10):
            model(torch.randn(3, 4))
            model.body(torch.randn(5, 4))  # another entry, in which the site has other modules around it
    assert sink.statistics["body.1/relu"].records == 20
    assert_same_whole(sink.statistics, rec.recording.describe())


@pytest.mark.parametrize(
    "spec",
    [
        CaptureSpec(transform=lambda value: value.mean(0), save_raw=False),
        CaptureSpec(transform=lambda value: value[:1]),
        CaptureSpec(dtype=torch.bfloat16),
        CaptureSpec(keep_grad=True),
    ],
    ids=["transform", "transform and raw", "cast", "attached"],
)
def test_it_measures_what_would_be_kept(spec: CaptureSpec) -> None:
    model, sink = policy(), StatisticsSink()
    with Recorder(model, keep_op="relu", capture=spec, sink=[RAMSink(), sink]) as rec:
        for i in range(40):
            model(torch.randn(2 + i % 3, 4))
    assert_same_whole(sink.statistics, rec.recording.describe())


def test_the_first_bad_value_is_named_by_its_step() -> None:
    model, sink = policy(), StatisticsSink()
    with torch.no_grad(), Recorder(model, keep_op="relu", sink=[RAMSink(), sink]) as rec:
        for i in range(200):
            with rec.phase("a" if i < 90 else "b"):
                model(torch.full((2, 4), math.nan if i in (150, 170) else 1.0))
                rec.step()
    bad = sink.statistics["1/relu"].bad
    assert str(bad) == "first NaN in step 60 of 'b' (pass 150)" == str(rec.recording.describe()["1/relu"].bad)


def test_a_pass_that_fails_leaves_no_trace() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(x)
            if y.sum() > 0:
                raise ValueError("no")
            return y

    model, sink = Failing(), StatisticsSink()
    with Recorder(model, keep_op="relu", sink=[RAMSink(), sink]) as rec:
        for i in range(100):
            try:
                model(torch.full((2, 3), float(i % 3 == 0)))
            except ValueError:
                assert i % 3 == 0
    assert sink.statistics["/relu"].whole["max"] == 0.0
    assert_same_whole(sink.statistics, rec.recording.describe())


def test_threads_may_record_at_once() -> None:
    model, sink = policy(), StatisticsSink(bins=10)

    def work() -> None:
        with torch.no_grad():
            for _ in range(150):
                model(torch.randn(3, 4))

    with Recorder(model, keep_op="relu", sink=[RAMSink(), sink]) as rec:
        running = [threading.Thread(target=work) for _ in range(4)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    assert sink.statistics["1/relu"].records == 600
    assert_same_whole(sink.statistics, rec.recording.describe())


def rig_of(sink: StatisticsSink) -> Rig:
    return Rig(sink)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 4, 5)], ids=str)
def test_values_of_any_shape(shape: tuple[int, ...]) -> None:
    sink = StatisticsSink()
    rig = rig_of(sink)
    for _ in range(3):
        rig.one_pass(torch.ones(shape))
    site = sink.statistics["a"]
    assert site.records == 3 and (site.values == 0 or site.whole["mean"] == 1)


def test_discarded_rows_leave_no_trace() -> None:
    sink = StatisticsSink()
    rig = rig_of(sink)
    transform = CaptureSpec(transform=lambda value: value * 2, save_raw=False)
    for i in range(300):
        info = rig.begin()
        kept = [
            rig.append("a", torch.full((3,), float(i % 2))),
            rig.append("b", torch.full((3,), float(i % 2)), transform),
        ]
        if i % 2:
            for meta, row in kept:
                rig.columns[meta].discard(row)
        else:
            rig.commit(info, kept)
    assert {name: (site.records, site.whole["max"]) for name, site in sink.statistics.items()} == {
        "a": (150, 0.0),
        "b": (150, 0.0),
    }


def test_values_may_be_written_to_afterwards() -> None:
    sink = StatisticsSink()
    rig = rig_of(sink)
    value = torch.zeros(4, 4)
    rig.one_pass(value, value.t())
    value.add_(1)
    assert sink.statistics["a"].whole["max"] == 0.0


def test_tensors_that_can_not_be_copied_are_refused() -> None:
    with pytest.raises(UnsupportedTensorError, match="layout torch.sparse_coo"):
        rig_of(StatisticsSink()).append("a", torch.eye(3).to_sparse())


def test_a_sink_belongs_to_one_session() -> None:
    sink = StatisticsSink()
    with Recorder(policy(), keep_op="relu", sink=sink) as rec:
        rec.log(torch.ones(1, 4))
    with (
        pytest.raises(SessionError, match="give each recorder a sink of its own"),
        Recorder(policy(), keep_op="relu", sink=sink),
    ):
        pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StatisticsSink(every=0), r"StatisticsSink\(every=0\): give a whole number from 1 up"),
        (lambda: StatisticsSink(bins=1), r"StatisticsSink\(bins=1\): give a whole number from 2 up"),
        (lambda: StatisticsSink(bins=True), r"StatisticsSink\(bins=True\): give a whole number from 2 up"),
        (lambda: StatisticsSink(unit_axis={"*": "last"}), "give the axis of each glob as a number"),
        (lambda: StatisticsSink().window(["dormancy"]), "there is no measure 'dormancy'; did you mean 'dormant_0'"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


def test_steps_whose_columns_do_not_fit_tell_of_no_ends() -> None:
    sink = StatisticsSink()
    rig = rig_of(sink)
    rig.one_pass(torch.ones(2))
    rig.mark(0, terminated=[True, False], truncated=True)
    rig.mark(1, reward=1.0)
    assert sink.statistics.time.episode_ends.tolist() == [0]


def test_windows_hand_over_what_came_since() -> None:
    model, sink = policy(), StatisticsSink()
    window, other = sink.window(["max", "drift", "dormant_0"]), sink.window()
    with torch.no_grad(), Recorder(model, keep_op="relu", sink=sink):
        assert window.take() == {}
        model(torch.ones(2, 4))
        first = window.take()
        model(10 * torch.ones(2, 4))
        second = window.take()
    assert set(first) == {"max/1/relu", "drift/1/relu", "dormant_0/1/relu"}
    assert first["drift/1/relu"] == pytest.approx(1.0) and second["max/1/relu"] > first["max/1/relu"]
    assert window.take() == {} and "norm/1/relu" in other.take()


def test_its_page_is_like_that_of_a_recording(tmp_path: Any) -> None:
    model, sink = policy(), StatisticsSink()
    with torch.no_grad(), Recorder(model, keep_op="relu", sink=sink):
        model(torch.ones(2, 4))
        sink.to_html(tmp_path / "live.html", title="a run")
    assert "1/relu" in (tmp_path / "live.html").read_text()


def test_statistics_without_a_site_say_so() -> None:
    with pytest.raises(RecordKeyError, match="there are no statistics of 'relu'; did you mean '1/relu'"):
        watched(StatisticsSink(), 3)["relu"]
    with pytest.raises(RecordKeyError, match="there is no measure 'dead'; did you mean 'dead_units'"):
        watched(StatisticsSink(), 3)["1/relu"]["dead"]
