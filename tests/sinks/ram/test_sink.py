import gc
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from fastrec._errors import SessionError
from fastrec.events.capture import CaptureSpec
from fastrec.events.sites import Catalog
from fastrec.recording._source import Source
from fastrec.sinks import RAMSink
from fastrec.sinks._protocol import Sink
from tests.contracts.sink import Rig, SinkContract, assert_same, check_source


class TestRAMSinkContract(SinkContract):
    def make(self) -> Sink:
        return RAMSink()

    def read(self, rig: Rig) -> Source:
        assert isinstance(rig.sink, RAMSink)
        return rig.sink.source()


@pytest.fixture
def rig() -> Rig:
    return Rig(RAMSink())


def sink_of(rig: Rig) -> RAMSink:
    assert isinstance(rig.sink, RAMSink)
    return rig.sink


def number(i: int) -> Tensor:
    return torch.full((4,), float(i))


def indices(source: Source) -> list[int]:
    return source.passes()["pass_index"].tolist()


def blocks_held(rig: Rig) -> int:
    return len(sink_of(rig)._pool.blocks)


def test_a_source_does_not_change_while_recording_goes_on(rig: Rig) -> None:
    rig.one_pass(number(0))
    early = sink_of(rig).source()
    for i in range(1, 200):
        rig.one_pass(number(i))
    check_source(sink_of(rig).source(), [(i, "a", number(i)) for i in range(200)])
    sink_of(rig).take()
    check_source(early, [(0, "a", number(0))])


def test_taking_hands_over_each_pass_once(rig: Rig) -> None:
    taken = []
    for i in range(300):
        rig.one_pass(*(("a", number(i)),) * (i % 3), sample_id=i)
        if i % 5 == 4:
            taken.append(sink_of(rig).take())
    for n, source in enumerate(taken):
        passes = range(5 * n, 5 * n + 5)
        check_source(source, [(i, "a", number(i)) for i in passes for _ in range(i % 3)])
        assert [source.sample_id(i) for i in passes if i % 3] == [i for i in passes if i % 3]
        assert source.n_passes() == 5
    assert sink_of(rig).source().n_passes() == 0


def test_taking_leaves_passes_that_still_run_alone(rig: Rig) -> None:
    running = rig.begin()
    kept = [rig.append("a", number(0))]
    for i in range(1, 100):
        rig.one_pass(number(i))
        check_source(sink_of(rig).take(), [(i, "a", number(i))])
    kept.append(rig.append("a", number(-1)))
    rig.commit(running, kept)
    check_source(sink_of(rig).take(), [(0, "a", number(0)), (0, "a", number(-1))])


def test_what_was_taken_and_dropped_is_freed(rig: Rig) -> None:
    for i in range(500):
        rig.one_pass(*(torch.full((64, 64), float(i)) for _ in range(3)))
        sink_of(rig).take()
    assert blocks_held(rig) <= 1


def test_a_taken_attached_value_frees_its_graph(rig: Rig) -> None:
    leaf = torch.ones(3, requires_grad=True)
    value = leaf * 2
    rig.one_pass(value, spec=CaptureSpec(keep_grad=True))
    source = sink_of(rig).take()
    (meta, row, _) = source.records()[0].item()
    kept = weakref.ref(source.value(meta, row, "activation"))
    assert kept() is not None
    del source
    gc.collect()
    assert kept() is None


def test_taking_hands_over_the_steps_too(rig: Rig) -> None:
    rig.mark(0, done=[True, False])
    (first,) = sink_of(rig).take().steps()
    rig.mark(1, done=[False, False])
    rig.mark(2, done=[False, True])
    (second,) = sink_of(rig).take().steps()
    assert first.numbers.tolist() == [0] and not first.columns_before
    assert second.numbers.tolist() == [1, 2] and second.columns_before["done"].tolist() == [True, False]
    assert not sink_of(rig).take().steps()


@pytest.mark.parametrize("most", [1, 2, 7, 64])
def test_trimming_shows_exactly_the_last_passes(rig: Rig, most: int) -> None:
    for i in range(200):
        rig.one_pass(number(i), ("b", number(-i)), sample_id=i)
        sink_of(rig).trim(passes=most)
        if i % 20 == 3:
            kept = range(max(0, i + 1 - most), i + 1)
            source = sink_of(rig).source()
            check_source(source, [(j, s, number(j if s == "a" else -j)) for j in kept for s in "ab"])
            assert source.sample_id(i) == i


def test_trimming_goes_on_after_more_was_held(rig: Rig) -> None:
    for i in range(150):
        rig.one_pass(number(i), sample_id=i)
    for i in range(150, 300):
        sink_of(rig).trim(passes=70 if i < 200 else 2)
        rig.one_pass(number(i), sample_id=i)
    sink_of(rig).trim(passes=2)
    source = sink_of(rig).source()
    check_source(source, [(298, "a", number(298)), (299, "a", number(299))])
    assert [source.sample_id(i) for i in (297, 298, 299)] == [None, 298, 299]


def test_trimming_frees_memory(rig: Rig) -> None:
    for i in range(2000):
        rig.one_pass(torch.full((64, 64), float(i)))
        sink_of(rig).trim(passes=3)
    assert blocks_held(rig) <= 3
    assert len(sink_of(rig)._pass_log._table.rows) <= 64  # type: ignore[union-attr]


@pytest.mark.parametrize("most", [1, 5])
def test_trimming_to_steps_shows_exactly_the_last_steps(rig: Rig, most: int) -> None:
    rig.catalog.phases.add("train")
    for step in range(40):
        for _ in range(3):
            rig.one_pass(number(step), step=step)
        rig.one_pass(number(step), phase=1)
        rig.mark(step, reward=float(step))
        sink_of(rig).trim(steps=most)
    rig.one_pass(number(40), step=40)
    source = sink_of(rig).source()
    passes = source.passes()
    rollout, train = passes[passes["phase"] == 0], passes[passes["phase"] == 1]
    steps = range(40 - most, 40)
    assert rollout["step"].tolist() == [s for s in steps for _ in range(3)] + [40]
    assert train["pass_index"].tolist() == [4 * s + 3 for s in steps]
    (marks,) = source.steps()
    assert marks.numbers.tolist() == list(steps)
    assert marks.columns["reward"].tolist() == list(steps) and marks.columns_before["reward"] == 39 - most


def test_trimming_looks_at_the_order_of_starts(rig: Rig) -> None:
    infos = [rig.begin() for _ in range(6)]
    for i in (5, 1, 0, 4, 2, 3):
        rig.commit(infos[i], [rig.append("a", number(i))])
    sink_of(rig).trim(passes=2)
    check_source(sink_of(rig).source(), [(4, "a", number(4)), (5, "a", number(5))])


def test_values_of_one_site_lie_together_whatever_the_path(rig: Rig) -> None:
    info = rig.begin()
    kept = [rig.append("a", number(i), label=f"relu_{i}") for i in range(6)]
    rig.commit(info, kept)
    source = sink_of(rig).source()
    records = source.records()
    tails = records["meta"].astype(np.int64), records["row"]
    last = [piece.data_ptr() for piece in source.values(*(t[3:] for t in tails), "activation")]
    assert len(last) == 1 and last[0] == source.value(int(tails[0][3]), int(tails[1][3]), "activation").data_ptr()


def test_evenly_spaced_rows_are_read_without_a_copy(rig: Rig) -> None:
    for i in range(10):
        rig.one_pass(number(i))
    sink_of(rig).source()
    rig.commit(rig.begin(), kept := [rig.append("a", number(i)) for i in range(10)])
    metas, rows = np.array([v for v, _ in kept]), np.array([r for _, r in kept])
    source = sink_of(rig).source()
    pieces = source.values(metas[1::2], rows[1::2], "activation")
    assert torch.equal(torch.cat([*pieces]), torch.stack([number(i) for i in range(1, 10, 2)]))
    assert {piece.untyped_storage().data_ptr() for piece in pieces} <= {
        block.parts["activation"].read().untyped_storage().data_ptr() for block in sink_of(rig)._pool.blocks.values()
    }


def test_rows_that_change_blocks_all_the_time_are_gathered(rig: Rig) -> None:
    kept = []
    for i in range(400):
        kept.append((i, rig.append("a", number(i))))
    rig.commit(rig.begin(), [row for _, row in kept])
    order = np.random.permutation(400)
    metas, rows = (np.array([kept[i][1][j] for i in order]) for j in (0, 1))
    pieces = sink_of(rig).source().values(metas, rows, "activation")
    assert len(pieces) < 100
    assert torch.equal(torch.cat([*pieces])[:, 0], torch.from_numpy(order).float())


def test_what_was_read_survives_in_backward_while_recording_goes_on(rig: Rig) -> None:
    weight = torch.ones(4, requires_grad=True)
    for value in (number(2), number(2).double().float()[None].expand(1, 4)[0]):
        rig.one_pass(value)
    source = sink_of(rig).source()
    (meta, row, _) = source.records()[0].item()
    loss = (weight * source.value(meta, row, "activation")).sum()
    for _ in range(100):
        rig.one_pass(torch.zeros(8)[::2])
    loss.backward()
    assert weight.grad is not None and weight.grad.tolist() == [2.0] * 4


def test_a_gradient_arrives_after_the_record_was_taken(rig: Rig) -> None:
    spec = CaptureSpec(save_gradient=True)
    leaf = torch.ones(3, requires_grad=True)
    value = leaf * 2
    rig.one_pass(value, spec=spec)
    source = sink_of(rig).take()
    (meta, row, _) = source.records()[0].item()
    assert source.value(meta, row, "gradient") is None
    loss = (value**2).sum()
    loss.backward(retain_graph=True)
    assert_same(source.value(meta, row, "gradient"), torch.full((3,), 4.0))
    loss.backward()
    assert_same(source.value(meta, row, "gradient"), torch.full((3,), 8.0))
    assert_same(source.value(meta, row, "activation"), torch.full((3,), 2.0))


def test_a_gradient_of_a_dropped_pass_reaches_no_other_record(rig: Rig) -> None:
    spec = CaptureSpec(save_gradient=True)
    leaf = torch.ones(3, requires_grad=True)
    dropped = leaf * 2
    meta, row = rig.append("a", dropped, spec)
    rig.columns[meta].discard(row)
    for _ in range(3):
        rig.one_pass(leaf * 3, spec=spec)
    assert blocks_held(rig) == 2
    dropped.sum().backward()
    source = sink_of(rig).source()
    assert [source.value(meta, r, "gradient") for r in source.records()["row"].tolist()] == [None] * 3


def test_a_gradient_is_a_copy(rig: Rig) -> None:
    value = torch.ones(3, requires_grad=True) * 2
    rig.one_pass(value, spec=CaptureSpec(save_gradient=True))
    gradient = torch.ones(3)
    value.backward(gradient)
    gradient.zero_()
    source = sink_of(rig).source()
    (meta, row, _) = source.records()[0].item()
    assert_same(source.value(meta, row, "gradient"), torch.ones(3))


def test_a_missing_floating_column_is_not_a_number(rig: Rig) -> None:
    rig.mark(0, reward=1.0)
    rig.mark(1, reward=1.0, late=2.0)
    (steps,) = sink_of(rig).source().steps()
    assert np.isnan(steps.columns["late"].data[0])


def test_attached_values_are_handed_out_as_they_are(rig: Rig) -> None:
    leaf = torch.ones(3, requires_grad=True)
    rig.one_pass(leaf * 2, leaf * 3, spec=CaptureSpec(keep_grad=True))
    source = sink_of(rig).source()
    records = source.records()
    first = source.value(int(records["meta"][0]), int(records["row"][0]), "activation")
    assert first is source.value(int(records["meta"][0]), int(records["row"][0]), "activation")
    pieces = source.values(records["meta"].astype(np.int64), records["row"], "activation")
    torch.cat([*pieces]).sum().backward()
    assert leaf.grad is not None and leaf.grad.tolist() == [5.0] * 3


def test_transformed_shapes_may_vary(rig: Rig) -> None:
    spec = CaptureSpec(transform=lambda t: t[t > 0], save_raw=False)
    values = [torch.randn(10) for _ in range(30)]
    rig.one_pass(*values, spec=spec)
    source = sink_of(rig).source()
    found = [source.value(v, r, "transformed_activation") for v, r, _ in source.records().tolist()]
    for value, kept in zip(values, found, strict=True):
        assert_same(kept, value[value > 0])


def test_a_value_that_can_not_be_copied_leaves_no_row_behind(rig: Rig) -> None:
    rig.one_pass(torch.zeros(3))
    meta = rig.meta("a", torch.zeros(3), CaptureSpec(), None)

    def inside(t: Tensor) -> Tensor:
        with pytest.raises(RuntimeError):
            rig.columns[meta].append(t)
        return t

    for _ in range(5):
        torch.vmap(inside)(torch.zeros(2, 3))
        rig.one_pass(torch.ones(3))
    check_source(sink_of(rig).source(), [(0, "a", torch.zeros(3)), *[(i, "a", torch.ones(3)) for i in range(1, 6)]])
    sink_of(rig).take()
    assert blocks_held(rig) <= 1


def test_a_sink_belongs_to_one_session(rig: Rig) -> None:
    with pytest.raises(SessionError, match="already belongs to a session"):
        rig.sink.open(Catalog())
    with pytest.raises(SessionError, match="belongs to no session yet"):
        RAMSink().source()


def test_a_record_costs_little_beside_its_tensor() -> None:
    rig = Rig(RAMSink())
    value = torch.zeros(4)
    meta, _ = rig.append("a", value)
    append = rig.columns[meta].append
    passes, per_pass = 2_000, 10
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(passes):
            info = rig.begin()
            rig.pass_log.commit(info, [meta] * per_pass, [append(value) for _ in range(per_pass)], [0.0] * per_pass)
        gc.collect()
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used / (passes * per_pass) < 50


def large(i: int) -> Tensor:
    return torch.full((300, 300), float(i))


def test_large_values_lie_by_themselves_once_records_are_handed_over(rig: Rig) -> None:
    rig.one_pass(large(0))
    sink_of(rig).take()
    for i in range(3):
        value = large(i)
        rig.one_pass(value)
        value.zero_()
        source = sink_of(rig).take()
        assert blocks_held(rig) == 0
        records = source.records()
        (found,) = source.values(records["meta"].astype(np.int64), records["row"], "activation")
        assert found.shape == (1, 300, 300) and found.unique().tolist() == [i]


def test_a_large_value_that_is_discarded_leaves_room_for_the_next(rig: Rig) -> None:
    sink_of(rig).take()
    for i in range(20):
        meta, row = rig.append("a", large(i))
        rig.columns[meta].discard(row)
    assert blocks_held(rig) <= 2


def test_large_values_are_kept_apart_from_inference_mode(rig: Rig) -> None:
    sink_of(rig).take()
    with torch.inference_mode():
        rig.one_pass(large(0))
        rig.one_pass(large(1))
    records = sink_of(rig).source().records()
    source = sink_of(rig).source()
    found = source.value(int(records["meta"][1]), int(records["row"][1]), "activation")
    assert found is not None and not found.is_inference()
