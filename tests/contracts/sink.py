"""What every sink promises; a sink's test inherits `SinkContract` and says how to make one and read it back."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastrec import CaptureSpec, Recording
from fastrec._errors import StepError, UnsupportedTensorError
from fastrec._torch.tensors import TensorGuard, tensor_guard
from fastrec.events.sites import Catalog, PassInfo, RecordMeta, Site
from fastrec.recording._source import Source
from fastrec.sinks import RAMSink
from fastrec.sinks._protocol import Sink

PLAIN = CaptureSpec()
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.complex64, torch.complex128, torch.complex32, torch.bool, torch.uint8),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64),
]


def random_of(dtype: torch.dtype, *shape: int) -> Tensor:
    value = torch.randn(*shape) * 20
    return (value if dtype.is_signed else value.abs()).to(dtype)


def bits(value: Tensor) -> bytes:
    plain = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach()).reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def assert_same(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert bits(found) == bits(expected)


class Rig:
    """Drives a sink as a recorder does, without models or engines."""

    def __init__(self, sink: Sink, header: dict[str, Any] | None = None) -> None:
        self.sink = sink
        self.catalog = Catalog(header)
        self.catalog.phases.add("")
        self.catalog.entries.add("")
        self.pass_log = sink.open(self.catalog)
        self.columns: dict[int, Any] = {}
        self.guarded_columns: dict[int, list[tuple[TensorGuard, Any]]] = {}
        self.n_begun = 0
        self.lock = threading.Lock()

    def meta(self, site: Site | str, value: Tensor, spec: CaptureSpec, label: str | None) -> int:
        if isinstance(site, str):
            site = Site(site, "op", "relu", "relu")
        return self.catalog.metas.add(
            RecordMeta(
                site=self.catalog.sites.add(site),
                label=label or site.name,
                number=1,
                op_index=0,
                event_index=0,
                module_pass=1,
                stack_passes=(),
                shape=tuple(value.shape),
                dtype=str(value.dtype).removeprefix("torch."),
                device=str(value.device),
                requires_grad=value.requires_grad,
                spec=self.catalog.specs.add(spec),
                recent_events=None,
                recent_ops=None,
            )
        )

    def append(
        self, site: Site | str, value: Tensor, spec: CaptureSpec = PLAIN, label: str | None = None
    ) -> tuple[int, int]:
        meta = self.meta(site, value, spec, label)
        if not spec.save_activation:
            return meta, -1
        with self.lock:
            guarded_columns = self.guarded_columns.setdefault(meta, [])
            column = next((column for guard, column in guarded_columns if guard(value)), None)
            if column is None:
                column = self.columns[meta] = self.sink.column(meta, value)
                guarded_columns.append((tensor_guard(value), column))
        return meta, column.append(value)

    def begin(self, **facts: Any) -> PassInfo:
        with self.lock:
            index = self.n_begun
            self.n_begun += 1
        defaults = {"index": index, "entry": 0, "entry_pass": index, "phase": 0, "grad": False}
        return PassInfo(**{**defaults, "started": self.catalog.began + index, **facts})

    def commit(self, info: PassInfo, kept: list[tuple[int, int]]) -> None:
        times = [info.started + 0.5 * i for i in range(len(kept))]
        self.pass_log.commit(info, [v for v, _ in kept], [r for _, r in kept], times)

    def one_pass(self, *values: Tensor | tuple[str, Tensor], spec: CaptureSpec = PLAIN, **facts: Any) -> None:
        """A pass in which values appeared, at a site "a" where none is named."""
        info = self.begin(**facts)
        named = [value if isinstance(value, tuple) else ("a", value) for value in values]
        self.commit(info, [self.append(site, value, spec) for site, value in named])

    def mark(self, step: int, phase: int = 0, **columns: Any) -> None:
        self.pass_log.mark(phase, step, {name: np.array(value) for name, value in columns.items()})

    def recording(self) -> Recording:
        """What a sink in RAM holds by now."""
        assert isinstance(self.sink, RAMSink)
        return Recording(self.sink.source())


def number(i: float, rows: int = 2) -> Tensor:
    """A value that shows its number."""
    return torch.full((rows, 3), float(i))


def kept_in(source: Source) -> Iterator[tuple[int, str, Tensor | None]]:
    """Each record: its pass, its site, its value."""
    records = source.records()
    for row in source.passes():
        for record in records[row["first"] : row["first"] + row["count"]]:
            meta = int(record["meta"])
            site = source.catalog.site_of(meta).name
            yield int(row["pass_index"]), site, source.value(meta, int(record["row"]), "activation")


def check_source(source: Source, expected: list[tuple[int, str, Tensor]]) -> None:
    """The records are those expected, one by one and all at once."""
    found = list(kept_in(source))
    assert [(index, site) for index, site, _ in found] == [(index, site) for index, site, _ in expected]
    for (_, _, value), (_, _, expected_value) in zip(found, expected, strict=True):
        assert_same(value, expected_value)
    records = source.records()
    for site in {site for _, site, _ in expected}:
        at = np.array([i for i, (_, name, _) in enumerate(expected) if name == site])
        values = [expected[i][2] for i in at]
        numbers, layouts = source.layouts(records["row"][at], "activation")
        assert [layouts[i] for i in numbers] == [(tuple(value.shape), value.dtype) for value in values]
        if len({value.shape for value in values}) == 1:
            pieces = source.values(records["meta"][at].astype(np.int64), records["row"][at], "activation")
            assert sum(len(piece) for piece in pieces) == len(values)
            assert_same(torch.cat([*pieces]), torch.stack(values))


class SinkContract(ABC):
    @abstractmethod
    def make(self) -> Sink:
        """A new sink."""

    @abstractmethod
    def read(self, rig: Rig) -> Source:
        """What the sink of a rig holds by now."""

    @pytest.fixture
    def rig(self) -> Rig:
        return Rig(self.make())

    @pytest.mark.filterwarnings("ignore:ComplexHalf")
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_values_come_back_bit_for_bit(self, rig: Rig, dtype: torch.dtype) -> None:
        values = [random_of(dtype, 3, 5) for _ in range(4)]
        for value in values:
            rig.one_pass(value)
        check_source(self.read(rig), [(i, "a", value) for i, value in enumerate(values)])

    def test_not_a_number_and_infinity_come_back(self, rig: Rig) -> None:
        value = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
        rig.one_pass(value)
        check_source(self.read(rig), [(0, "a", value)])

    @pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 4, 5)], ids=str)
    def test_any_shape_comes_back(self, rig: Rig, shape: tuple[int, ...]) -> None:
        values = [torch.randn(shape) for _ in range(3)]
        rig.one_pass(*values)
        check_source(self.read(rig), [(0, "a", value) for value in values])

    @pytest.mark.parametrize(
        "value",
        [
            torch.randn(4, 6).t(),
            torch.randn(8, 8)[::2, ::3],
            torch.randn(1, 4).expand(5, 4),
            torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
            torch._neg_view(torch.randn(5)),
            torch.randn(3, dtype=torch.complex64).conj(),
            torch.randn(1, dtype=torch.complex64).conj().imag,
            torch.nn.Parameter(torch.randn(4)),
            torch.randn(4, requires_grad=True) * 2,
        ],
        ids=["t", "strided", "expanded", "channels_last", "negated", "conjugated", "imag", "parameter", "attached"],
    )
    def test_any_layout_comes_back(self, rig: Rig, value: Tensor) -> None:
        rig.one_pass(value, value)
        source = self.read(rig)
        check_source(source, [(0, "a", value), (0, "a", value)])
        assert not any(kept.requires_grad for _, _, kept in kept_in(source) if kept is not None)

    def test_a_large_value_comes_back(self, rig: Rig) -> None:
        values = [torch.randn(700, 1000) for _ in range(2)]
        for value in values:
            rig.one_pass(value)
        check_source(self.read(rig), [(i, "a", value) for i, value in enumerate(values)])

    def test_values_made_in_inference_mode_come_back(self, rig: Rig) -> None:
        with torch.inference_mode():
            value = torch.randn(4, 4)
            for _ in range(3):
                rig.one_pass(value, value.t())
        expected = [(i, "a", v) for i in range(3) for v in (value, value.t())]
        source = self.read(rig)
        check_source(source, expected)
        assert not any(kept.is_inference() for _, _, kept in kept_in(source) if kept is not None)

    def test_writing_into_a_value_later_does_not_change_its_record(self, rig: Rig) -> None:
        value, strided = torch.zeros(4, 4), torch.zeros(4, 4).t()
        rig.one_pass(value, strided)
        value.add_(1)
        strided.add_(1)
        check_source(self.read(rig), [(0, "a", torch.zeros(4, 4)), (0, "a", torch.zeros(4, 4))])

    def test_one_site_may_have_values_of_many_shapes_and_dtypes(self, rig: Rig) -> None:
        values = [torch.randn(1 + i % 3, 2).to(torch.float64 if i % 2 else torch.float32) for i in range(40)]
        for value in values:
            rig.one_pass(value)
        check_source(self.read(rig), [(i, "a", value) for i, value in enumerate(values)])

    def test_thousands_of_passes_come_back(self, rig: Rig) -> None:
        values = torch.randn(3000, 2, 3)
        for value in values:
            rig.one_pass(("a", value[0]), ("b", value[1]))
        check_source(self.read(rig), [(i, s, v[j]) for i, v in enumerate(values) for j, s in enumerate("ab")])

    def test_passes_without_records_count(self, rig: Rig) -> None:
        for _ in range(3):
            rig.one_pass()
        source = self.read(rig)
        assert source.n_passes() == 3 and len(source.records()) == 0

    def test_passes_without_records_take_no_room_unless_they_ended_badly(self, rig: Rig) -> None:
        for outcome in ("ok", "halted", "ok", "failed"):
            rig.one_pass(outcome=outcome)
        assert self.read(rig).passes()["pass_index"].tolist() == [1, 3]

    def test_a_record_without_a_tensor_has_its_place(self, rig: Rig) -> None:
        rig.one_pass(torch.zeros(2), spec=CaptureSpec(save_activation=False))
        source = self.read(rig)
        assert [value for _, _, value in kept_in(source)] == [None]
        with pytest.raises(KeyError):
            source.values(np.array([0]), np.array([-1]), "activation")
        with pytest.raises(KeyError):
            source.layouts(np.array([-1]), "activation")
        assert source.nbytes(np.array([0]), np.array([-1])).tolist() == [0]

    def test_facts_of_passes_come_back(self, rig: Rig) -> None:
        rig.catalog.phases.add("train")
        rig.one_pass(phase=1, entry_pass=7, grad=True, duration=0.25, step=3, outcome="halted", sample_id="x")
        rig.one_pass(outcome="failed", sample_id=5)
        rig.one_pass(torch.zeros(1), torch.zeros(1))
        source = self.read(rig)
        first = source.passes()[0]
        assert [first[n] for n in ("phase", "entry_pass", "grad", "step", "outcome")] == [1, 7, True, 3, 2]
        assert first["duration"] == 0.25
        assert source.passes()["started"] == pytest.approx([0.0, 1.0, 2.0], abs=1e-6)
        assert source.records()["time"] == pytest.approx([0.0, 0.5], abs=1e-6)
        assert [source.sample_id(i) for i in range(3)] == ["x", 5, None]
        assert source.passes()["outcome"].tolist() == [2, 1, 0]

    def test_passes_are_in_order_of_their_start_whichever_ended_first(self, rig: Rig) -> None:
        infos = [rig.begin() for _ in range(50)]
        values = {}
        for i in np.random.permutation(50).tolist():
            values[i] = torch.full((2,), float(i))
            rig.commit(infos[i], [rig.append("a", values[i]), rig.append("b", -values[i])])
        expected = [(i, site, value) for i in range(50) for site, value in (("a", values[i]), ("b", -values[i]))]
        check_source(self.read(rig), expected)

    def test_discarded_rows_leave_no_trace(self, rig: Rig) -> None:
        expected = []
        for i in range(300):
            info, values = rig.begin(), [torch.randn(3), torch.randn(3, 1)]
            kept = [rig.append("a", value) for value in values]
            if i % 3 == 1:
                for meta, row in kept:
                    rig.columns[meta].discard(row)
                continue
            rig.commit(info, kept)
            expected += [(i, "a", value) for value in values]
        check_source(self.read(rig), expected)

    def test_a_discard_in_one_thread_leaves_the_rows_of_another_alone(self, rig: Rig) -> None:
        mine, other = rig.begin(), rig.begin()
        kept = [rig.append("a", torch.full((4,), 1.0))]
        dropped = rig.append("a", torch.full((4,), 2.0))
        kept.append(rig.append("a", torch.full((4,), 3.0)))
        rig.columns[dropped[0]].discard(dropped[1])
        rig.commit(mine, kept)
        rig.commit(other, [rig.append("a", torch.full((4,), 4.0))])
        expected = [(0, 1.0), (0, 3.0), (1, 4.0)]
        check_source(self.read(rig), [(index, "a", torch.full((4,), number)) for index, number in expected])

    def test_threads_may_append_and_commit_at_once(self, rig: Rig) -> None:
        threads, passes = 6, 200

        def work(thread: int) -> None:
            for i in range(passes):
                info = rig.begin()
                value = torch.full((5,), float(info.index))
                kept = [rig.append("a", value), rig.append("a", value + 0.5)]
                if i % 7 == thread:
                    for meta, row in kept:
                        rig.columns[meta].discard(row)
                else:
                    rig.commit(info, kept)

        rig.append("a", torch.zeros(5))
        running = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        source = self.read(rig)
        assert np.all(np.diff(source.passes()["pass_index"]) > 0)
        assert len(source.records()) > threads * passes
        for index, _, value in kept_in(source):
            assert value is not None and value.unique().item() in (index, index + 0.5)

    def test_a_cast_and_a_transform_are_kept(self, rig: Rig) -> None:
        value = torch.randn(4, 6)
        half = CaptureSpec(dtype=torch.bfloat16)
        pooled = CaptureSpec(transform=lambda t: t.mean(1), save_raw=False, dtype=torch.float64)
        both = CaptureSpec(transform=lambda t: t[0])
        info = rig.begin()
        kept = [rig.append("half", value, half), rig.append("whole", value.long(), half)]
        kept += [rig.append("pooled", value, pooled), rig.append("both", value, both)]
        rig.commit(info, kept)
        source = self.read(rig)
        (v0, r0), (v1, r1), (v2, r2), (v3, r3) = ((int(r["meta"]), int(r["row"])) for r in source.records())
        assert_same(source.value(v0, r0, "activation"), value.bfloat16())
        assert_same(source.value(v1, r1, "activation"), value.long())
        assert source.value(v2, r2, "activation") is None
        assert_same(source.value(v2, r2, "transformed_activation"), value.mean(1).double())
        assert_same(source.value(v3, r3, "activation"), value)
        assert_same(source.value(v3, r3, "transformed_activation"), value[0])
        assert source.nbytes(np.array([v0, v1, v2, v3]), np.array([r0, r1, r2, r3])).tolist() == [48, 192, 32, 120]

    def test_steps_and_late_columns_come_back(self, rig: Rig) -> None:
        for i in range(20):
            late = {"late": [i, i]} if i >= 10 else {}
            rig.mark(i, reward=[0.5 * i, -i], done=i % 2 == 0, **late)
        (steps,) = self.read(rig).steps()
        assert steps.phase == 0 and steps.numbers.tolist() == list(range(20))
        assert steps.columns["reward"].tolist() == [[0.5 * i, -i] for i in range(20)]
        assert steps.columns["done"].tolist() == [i % 2 == 0 for i in range(20)]
        assert np.ma.getmaskarray(steps.columns["late"])[:, 0].tolist() == [i < 10 for i in range(20)]
        assert steps.columns["late"][10:].tolist() == [[i, i] for i in range(10, 20)]
        assert not steps.columns_before

    def test_phases_have_steps_of_their_own(self, rig: Rig) -> None:
        rig.catalog.phases.add("eval")
        for i in range(3):
            rig.mark(i, reward=[1.0, 2.0])
            rig.mark(i, phase=1, reward=3.0)
        first, second = self.read(rig).steps()
        assert (first.columns["reward"].shape, second.columns["reward"].shape) == ((3, 2), (3,))
        assert (first.order.tolist(), second.order.tolist()) == ([0, 2, 4], [1, 3, 5])

    def test_a_step_column_that_changes_its_shape_is_refused(self, rig: Rig) -> None:
        rig.mark(0, reward=[1.0, 2.0])
        with pytest.raises(StepError, match=r"column 'reward' has shape \(\) now and had \(2,\) before"):
            rig.mark(1, reward=1.0)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (torch.eye(3).to_sparse(), "layout torch.sparse_coo"),
            (torch.empty(3, device="meta"), "meta tensor"),
        ],
        ids=["coo", "meta"],
    )
    def test_tensors_of_which_no_right_copy_can_be_made_are_refused(
        self, rig: Rig, value: Tensor, message: str
    ) -> None:
        with pytest.raises(UnsupportedTensorError, match=message):
            rig.append("a", value)
