"""Records by number, key and selection; tensors, arrays and tables of them."""

import gc
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastrec
from fastrec import ActivationRecord, CaptureSpec, Recorder, Recording
from fastrec._errors import GradientError, MissingExtraError, OptionError, RaggedError, RecordKeyError
from fastrec.events.sites import Frame, Site
from fastrec.sinks import RAMSink
from tests.contracts.sink import Rig, number

RELU = Site("features.3/relu", "op", "relu", "relu", (Frame("", "Net"), Frame("features.3", "ReLU")))
CONV = Site("features.3", "module_exit", "relu", "ReLU", (Frame("", "Net"), Frame("features.3", "ReLU")))
LSTM = [
    Site(f"lstm{path}", "module_exit", "lstm", "LSTM", (Frame("lstm", "LSTM"),), i, path)
    for i, path in enumerate(("[0]", "[1][0]", "[1][1]"))
]


@pytest.fixture
def rig() -> Rig:
    return Rig(RAMSink())


@pytest.fixture
def ten(rig: Rig) -> Recording:
    """Ten passes: a relu fires twice, its module's output once."""
    for i in range(10):
        kept = [rig.append(RELU, number(i), label="relu_1"), rig.append(RELU, number(-i), label="relu_2")]
        kept.append(rig.append(CONV, number(100 + i), label="features.3:1"))
        rig.commit(rig.begin(), kept)
    return rig.recording()


def test_records_come_in_order_by_number_slice_and_iteration(ten: Recording) -> None:
    assert len(ten) == ten.n_records == len(ten.records) == 30 and ten.n_passes == 10
    labels = [record.ctx.label for record in ten]
    assert labels == ["relu_1", "relu_2", "features.3:1"] * 10
    assert [record.ctx.label for record in ten[1:5]] == labels[1:5]
    assert [r.ctx.pass_index for r in ten[::-9]] == [9, 6, 3, 0]
    assert ten[4].ctx.label == ten.records[4].ctx.label == labels[4]
    assert ten[-1].ctx.pass_index == 9 and ten[np.int64(3)].ctx.pass_index == 1
    assert torch.equal(ten[3].activation, number(1))
    with pytest.raises(IndexError):
        ten[30]
    with pytest.raises(RecordKeyError, match="give a number, a slice, a module's address, a site or a label"):
        ten[1.5]  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("key", "count"),
    [
        ("relu_2", 10),
        ("features.3/relu", 20),
        ("features.3", 10),
        ("label:relu_1", 10),
        ("site:features.3/relu", 20),
        ("module:features.3", 10),
        ("site:features.3", 10),
        ("features.3:1", 10),
    ],
)
def test_a_key_is_a_module_a_site_or_a_label(ten: Recording, key: str, count: int) -> None:
    records = ten[key]
    assert isinstance(records, list) and len(records) == count and key in ten
    assert all(isinstance(record, ActivationRecord) for record in records)
    assert [record.ctx.pass_index for record in records] == sorted(record.ctx.pass_index for record in records)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("relu_3", "there is nothing under 'relu_3'; did you mean 'relu_2' or 'relu_1'"),
        ("site:features.4", "did you mean 'features.3'"),
        ("features", "there is nothing under 'features'"),
        ("conv", "there is nothing under 'conv'; choose from 'features.3/relu', 'features.3'"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_close_ones(ten: Recording, key: str, message: str) -> None:
    for read in (ten.__getitem__, ten.stack, ten.last, ten.to_numpy):
        with pytest.raises(RecordKeyError, match=message):
            read(key)
    assert key not in ten


def test_the_error_for_a_module_names_its_ops_where_only_they_were_kept(rig: Rig) -> None:
    rig.one_pass()
    rig.commit(rig.begin(), [rig.append(RELU, number(1))])
    with pytest.raises(RecordKeyError, match="nothing under 'features.3' itself, but there is 'features.3/relu'"):
        rig.recording()["features.3"]


def test_a_key_that_means_two_things_is_an_error_that_shows_both(rig: Rig) -> None:
    module = Site("relu_1", "module_exit", "relu", "ReLU", (Frame("relu_1", "ReLU"),))
    kept = [rig.append(RELU, number(1), label="relu_1"), rig.append(module, number(2), label="relu_1:1")]
    rig.commit(rig.begin(), kept)
    recording = rig.recording()
    with pytest.raises(RecordKeyError, match="'relu_1' is ambiguous here; say 'module:relu_1' or 'label:relu_1'"):
        recording["relu_1"]
    assert recording.stack("module:relu_1")[0, 0, 0] == 2 and recording.stack("label:relu_1")[0, 0, 0] == 1


def test_an_empty_recording_says_so(rig: Rig) -> None:
    with pytest.raises(RecordKeyError, match="this recording has no records"):
        rig.recording()["relu_1"]
    assert rig.recording().summary() == "0 records of 0 sites in 0 passes, 0 B"
    assert not rig.recording().sites and list(rig.recording()) == []


def test_stacks_are_ordered_by_pass_and_event(ten: Recording) -> None:
    assert ten.stack("features.3")[:, 0, 0].tolist() == [100.0 + i for i in range(10)]
    assert ten.stack("features.3/relu")[:, 0, 0].tolist() == [x for i in range(10) for x in (i, -i)]
    by_pass = ten.stack("features.3/relu", by="pass")
    assert by_pass.shape == (10, 2, 2, 3) and by_pass[4, 1, 0, 0] == -4
    with pytest.raises(OptionError, match="give by='pass', by='step' or by='sample', or leave it out"):
        ten.stack("relu_1", by="steps")  # type: ignore[call-overload]


def test_values_that_lie_together_are_stacked_without_a_copy(rig: Rig) -> None:
    for i in range(63):  # blocks of 1, 2, 4, 8, 16 and 32 rows
        rig.one_pass(number(i))
    tail = rig.recording().select(passes=slice(-16, None))
    stacked = tail.stack("a")
    first, last = tail[0].activation, tail[-1].activation
    assert first is not None and last is not None
    assert stacked.data_ptr() == first.data_ptr() and stacked[-1].data_ptr() == last.data_ptr()


def test_last_is_the_newest_record(ten: Recording) -> None:
    assert ten.last("relu_2").ctx.pass_index == 9 and ten.last("relu_2").activation[0, 0] == -9


def test_different_shapes_are_ragged(rig: Rig) -> None:
    for rows in (8, 8, 1):
        rig.one_pass(number(1, rows))
    with pytest.raises(RaggedError, match=r"'a' has values of shapes \(8, 3\) \(2 records\), \(1, 3\) \(1 records\)"):
        rig.recording().stack("a")
    assert rig.recording().select(batch=8).stack("a").shape == (2, 8, 3)


def test_different_dtypes_are_ragged(rig: Rig) -> None:
    rig.one_pass(number(1), number(2).double())
    with pytest.raises(RaggedError, match=r"dtypes 'torch.float32' \(1 records\), 'torch.float64' \(1 records\)"):
        rig.recording().stack("a")


def test_different_leaves_are_ragged(rig: Rig) -> None:
    rig.commit(rig.begin(), [rig.append(site, number(i)) for i, site in enumerate(LSTM)])
    recording = rig.recording()
    assert len(recording["lstm"]) == 3
    with pytest.raises(RaggedError, match=r"'lstm' has several leaves: 'lstm\[0\]' \(1 records\), 'lstm\[1\]\[0\]'"):
        recording.stack("lstm")
    assert recording.stack("lstm[1][0]")[0, 0, 0] == 1


def test_different_sites_under_one_label_are_ragged(rig: Rig) -> None:
    for site in ("a/relu", "b/relu", "b/relu"):
        rig.commit(rig.begin(), [rig.append(Site(site, "op", "relu", "relu"), number(1), label="relu_1")])
    with pytest.raises(RaggedError, match=r"several sites: 'a/relu' \(1 records\), 'b/relu' \(2 records\)"):
        rig.recording().stack("relu_1")


def test_different_firings_are_ragged_by_pass(rig: Rig) -> None:
    rig.one_pass(number(1))
    rig.one_pass(number(1), number(2))
    rig.one_pass()
    with pytest.raises(RaggedError, match="1 in 1 passes, 2 in 1 passes; use stack without by="):
        rig.recording().stack("a", by="pass")


def test_attached_values_are_stacked_attached(rig: Rig) -> None:
    leaf = torch.ones(3, requires_grad=True)
    for i in range(3):
        rig.one_pass(leaf * i, spec=CaptureSpec(keep_grad=True))
    recording = rig.recording()
    assert recording[1].activation is recording[1].activation
    recording.stack("a").sum().backward()
    assert leaf.grad is not None and leaf.grad.tolist() == [3.0] * 3
    assert recording.to_numpy("a").tolist() == [[i] * 3 for i in range(3)]


def test_gradients_are_stacked_once_they_arrived(rig: Rig) -> None:
    leaf = torch.ones(3, requires_grad=True)
    values = [leaf * i for i in range(3)]
    for value in values:
        rig.one_pass(value, spec=CaptureSpec(save_gradient=True))
    recording = rig.recording()
    assert recording[0].gradient is None
    with pytest.raises(GradientError, match="no gradient has reached 'a' yet .*call backward"):
        recording.stack("a", part="gradient")
    sum(value.sum() * i for i, value in enumerate(values)).backward()  # type: ignore[union-attr]
    assert recording.stack("a", part="gradient")[:, 0].tolist() == [0.0, 1.0, 2.0]


def test_what_only_a_transform_kept_is_what_is_stacked(rig: Rig) -> None:
    for i in range(3):
        rig.one_pass(number(i), spec=CaptureSpec(transform=lambda t: t.sum(), save_raw=False))
    recording = rig.recording()
    assert recording[1].activation is None and recording[1].transformed_activation == 6
    assert recording.stack("a").tolist() == [0.0, 6.0, 12.0]
    with pytest.raises(RecordKeyError, match="was kept without its activation: CaptureSpec"):
        recording.stack("a", part="activation")
    with pytest.raises(OptionError, match="part='raw': choose one of"):
        recording.stack("a", part="raw")


def test_transforms_may_make_one_shape_of_many(rig: Rig) -> None:
    for rows in (1, 2, 3):
        rig.one_pass(number(rows, rows), spec=CaptureSpec(transform=lambda t: t.mean(0)))
    recording = rig.recording()
    assert recording.stack("a", part="transformed_activation")[:, 0].tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(RaggedError, match=r"activation of 'a' has values of shapes \(1, 3\) \(1 records\)"):
        recording.stack("a")


def test_a_record_without_a_tensor_still_has_its_context(rig: Rig) -> None:
    rig.one_pass(number(1), spec=CaptureSpec(save_activation=False))
    (record,) = rig.recording()
    assert record.activation is None and record.ctx.tensor_shape == (2, 3) and not record.spec.save_activation
    with pytest.raises(RecordKeyError, match="was kept without its activation"):
        rig.recording().stack("a")


def test_records_show_themselves_in_one_line(rig: Rig) -> None:
    rig.one_pass(("a", number(1)), ("b", torch.tensor(1)))
    rig.mark(0)
    rig.one_pass(number(1), step=1)
    first, second, third = rig.recording()
    assert repr(first) == "ActivationRecord('a', site='a', 2x3 float32, pass 0, step 0)"
    assert repr(second) == "ActivationRecord('b', site='b', scalar int64, pass 0, step 0)"
    assert third.ctx.step == 1 and repr(rig.recording().records) == "<3 records>"
    assert repr(rig.recording()) == "<Recording: 3 records of 2 sites in 2 passes>"


def test_contexts_know_their_pass(rig: Rig) -> None:
    rig.catalog.phases.add("eval")
    rig.catalog.entries.add("actor")
    rig.one_pass(number(1), phase=1, entry=1, entry_pass=5, grad=True, sample_id="x")
    ctx = rig.recording()[0].ctx
    assert (ctx.phase, ctx.entry, ctx.entry_pass, ctx.grad_enabled, ctx.sample_id) == ("eval", "actor", 5, True, "x")
    assert ctx.step is None and ctx.site == "a" and ctx.time_since_pass_start == pytest.approx(0)


def test_passes_are_read_one_by_one(ten: Recording) -> None:
    assert [record.ctx.label for record in ten.iter_pass(3)] == ["relu_1", "relu_2", "features.3:1"]
    with pytest.raises(RecordKeyError, match="there is no pass 10 here; there are passes 0 to 9"):
        ten.iter_pass(10)


def test_a_pass_without_records_is_read_as_one(rig: Rig) -> None:
    rig.one_pass()
    rig.one_pass(number(1))
    recording = rig.recording()
    assert [len(list(recording.iter_pass(i))) for i in range(recording.n_passes)] == [0, 1]
    with pytest.raises(RecordKeyError, match="there is no pass -1 here"):
        recording.iter_pass(-1)


def test_a_recording_knows_why_passes_were_halted(rig: Rig) -> None:
    for outcome in ("ok", "halted", "halted"):
        rig.one_pass(number(1), outcome=outcome)
    rig.catalog.halted = {1: "first", 2: "second"}
    assert rig.recording().halted == {1: "first", 2: "second"}
    assert rig.recording().select(passes=[0, 2]).halted == {2: "second"}
    rig.catalog.failures = ["failure"]
    assert rig.recording().predicate_failures == ["failure"]


def test_sites_are_counted(ten: Recording) -> None:
    assert list(ten.sites) == ["features.3/relu", "features.3"]
    facts = ten.sites["features.3/relu"]
    assert (facts.kind, facts.count, facts.passes, facts.shapes) == ("op", 20, 10, ((2, 3),))
    assert (facts.dtypes, facts.nbytes, facts.module_type) == (("float32",), 480, "ReLU")


def test_the_summary_is_a_table(ten: Recording) -> None:
    assert ten.summary().splitlines() == [
        "30 records of 2 sites in 10 passes, 720 B",
        "site             kind         records  passes  shape  dtype    bytes",
        "features.3/relu  op           20       10      2x3    float32  480 B",
        "features.3       module_exit  10       10      2x3    float32  240 B",
    ]


def test_html_is_escaped_and_cut(rig: Rig) -> None:
    rig.one_pass(*((f"<b>{i}", number(i)) for i in range(60)))
    html = rig.recording()._repr_html_()
    assert "<b>" not in html and "&lt;b&gt;1<" in html and "script" not in html
    assert html.startswith("<div") and "and 10 more sites" in html


def test_pandas_gets_one_row_per_record(ten: Recording) -> None:
    frame = ten.to_pandas()
    assert frame["label"].tolist() == ["relu_1", "relu_2", "features.3:1"] * 10
    assert frame["pass_index"].tolist() == [i for i in range(10) for _ in range(3)]
    for record, (_, row) in zip(ten, frame.iterrows(), strict=True):
        for name in set(frame.columns) - {"tensor_dtype", "tensor_device"}:
            assert row[name] == getattr(record.ctx, name) or row[name] is getattr(record.ctx, name), name


def test_a_missing_pandas_is_an_error_that_names_its_extra(ten: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"to_pandas\(\) needs pandas.*pip install '.*\[pandas\]'"):
        ten.to_pandas()


def test_numpy_gets_what_it_has_no_dtype_for_as_float32(rig: Rig) -> None:
    value = torch.randn(3)
    info = rig.begin()
    specs = {"bf16": torch.bfloat16, "fp8": torch.float8_e5m2, "f64": torch.float64, "own": None}
    rig.commit(info, [rig.append(site, value, CaptureSpec(dtype=dtype)) for site, dtype in specs.items()])
    recording = rig.recording()
    dtypes = {site: recording.to_numpy(site).dtype.name for site in specs}
    assert dtypes == {"bf16": "float32", "fp8": "float32", "f64": "float64", "own": "float32"}
    assert recording.to_numpy("bf16")[0].tolist() == value.bfloat16().tolist()


def test_reading_in_inference_mode_gives_normal_tensors(ten: Recording) -> None:
    with torch.inference_mode():
        read = [ten.stack("features.3/relu"), ten[0].activation]
    assert not any(value.is_inference() for value in read if value is not None)


# A pass of the model: its phase, grad mode, and the (site, rows) of its values.
PASSES = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.booleans(),
        st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from([1, 2, 8])), max_size=5),
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(PASSES, st.randoms(use_true_random=False), st.data())
def test_a_recording_equals_a_list_of_tuples(passes: Any, random: Any, data: Any) -> None:
    rig = Rig(RAMSink())
    rig.catalog.phases.add("other")
    infos = [rig.begin(phase=phase, grad=grad) for phase, grad, _ in passes]
    model = []
    order = list(range(len(passes)))
    random.shuffle(order)
    values = iter(range(1000))
    for i in order:
        phase, grad, fired = passes[i]
        kept = []
        for event, (site, rows) in enumerate(fired):
            value = number(next(values), rows)
            kept.append(rig.append(site, value))
            model.append((i, event, site, rows, phase, grad, value))
        rig.commit(infos[i], kept)
    model.sort(key=lambda record: record[:2])
    recording = rig.recording()
    check(recording, model, len(passes))

    selected = {i for i in range(len(passes)) if data.draw(st.booleans())}
    with_records = {i for i, (_, _, fired) in enumerate(passes) if fired}
    check(recording.select(passes=selected), [r for r in model if r[0] in selected], len(selected & with_records))
    with_grad = recording.select(grad=True, phase="other")
    fitting = [i for i, (phase, grad, _) in enumerate(passes) if grad and phase == 1]
    check(with_grad, [r for r in model if r[0] in fitting], len(with_records.intersection(fitting)))
    if any(record[3] == 8 for record in model):
        batch = recording.select(passes=slice(None), batch=8)
        of_size_8 = [r for r in model if r[3] == 8]
        check(batch, of_size_8, len({r[0] for r in of_size_8}))


def check(recording: Recording, model: list[Any], passes: int) -> None:
    assert (recording.n_passes, len(recording)) == (passes, len(model))
    found = [(r.ctx.pass_index, r.ctx.site, r.ctx.grad_enabled) for r in recording]
    assert found == [(i, site, grad) for i, _, site, _, _, grad, _ in model]
    assert all(torch.equal(r.activation, m[-1]) for r, m in zip(recording, model, strict=True))
    for site in {record[2] for record in model}:
        of_site = [record for record in model if record[2] == site]
        assert recording.sites[site].count == len(of_site)
        assert recording.sites[site].passes == len({record[0] for record in of_site})
        assert recording.sites[site].nbytes == sum(record[-1].nbytes for record in of_site)
        if len({record[3] for record in of_site}) == 1:
            assert torch.equal(recording.stack(site), torch.stack([record[-1] for record in of_site]))
        else:
            with pytest.raises(RaggedError):
                recording.stack(site)


@pytest.fixture
def many() -> Iterator[tuple[Recording, int]]:
    """200,000 records, and the bytes that they and reading them cost."""
    rig = Rig(RAMSink())
    meta, _ = rig.append("a", torch.zeros(1))
    append = rig.columns[meta].append
    gc.collect()
    tracemalloc.start()
    for i in range(20_000):
        value = torch.tensor([float(i)])
        rig.pass_log.commit(rig.begin(), [meta] * 10, [append(value) for _ in range(10)], [0.0] * 10)
    recording = rig.recording()
    stacked = recording.select(grad=False).stack("a")
    gc.collect()
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert stacked.shape == (200_000, 1) and stacked[:, 0].tolist() == [float(i // 10) for i in range(200_000)]
    yield recording, used


def test_many_records_cost_few_bytes(many: tuple[Recording, int]) -> None:
    recording, used = many
    assert len(recording) == 200_000
    assert used / len(recording) < 150


@pytest.mark.parametrize("in_file", [False, True])
def test_a_module_is_found_under_each_of_its_addresses(in_file: bool, tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Linear(4, 4))
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(x))
            return out

    model, x = Shared(), torch.randn(2, 4)
    path = tmp_path / "run.h5"
    with torch.no_grad(), Recorder(model, keep_op=True, keep_module="b", sink=str(path) if in_file else None) as rec:
        want = model(x)
    recording = fastrec.load(path) if in_file else rec.recording
    assert len(recording["b"]) == 2 and torch.equal(recording.last("b").activation, want)
    assert torch.equal(recording.stack("b.0/linear"), recording.stack("a.0/linear"))
