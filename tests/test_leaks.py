"""Recording nothing costs no memory, however long it runs."""

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec import FastrecWarning, Recorder
from fastrec.engines.eager import passes
from fastrec.predicates import every, first, kind, op, phase, shape, structural

PASSES = 100_000

pytestmark = pytest.mark.filterwarnings("ignore::fastrec.FastrecWarning")


class Tiny(nn.Module):
    """A pass that takes next to no time."""

    def __init__(self) -> None:
        super().__init__()
        self.half = torch.tensor(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.half


def growth(run: Callable[[int], None], passes: int) -> int:
    """The bytes that many more passes leave behind, after some.

    The smaller figure of two, because what Python itself keeps for later, such as dictionaries that have grown, comes
    once. What passes leave behind comes each time.
    """
    run(passes // 20)
    return min(_bytes_left(run, passes) for _ in range(2))


def _bytes_left(run: Callable[[int], None], passes: int) -> int:
    gc.collect()
    tracemalloc.start()
    run(passes // 20)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    tracemalloc.start()
    run(passes)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return after - before


NOTHING: dict[str, dict[str, Any]] = {
    "another type": {"keep_op": "relu"},
    "another module": {"keep_module": "encoder.*"},
    "no shape": {"keep_op": op("mul") & shape(7, 7)},
    "an opaque predicate": {"keep_op": lambda ctx: None},
    "another phase": {"keep_op": phase("never")},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTHING)
def test_passes_that_keep_nothing_cost_no_memory(name: str) -> None:
    model, x = Tiny(), torch.ones(1)
    passes = PASSES if name == "another type" else PASSES // 10
    with torch.no_grad(), Recorder(model, **NOTHING[name]) as rec:

        def run(count: int) -> None:
            for _ in range(count):
                model(x)

        assert growth(run, passes) < 50_000
    assert len(rec.recording) == 0


def test_failed_paused_and_popped_passes_cost_no_memory() -> None:
    model = nn.Sequential(Tiny(), nn.Unflatten(0, (2, 1)))

    with torch.no_grad(), Recorder(model, keep_op="mul") as rec:

        def run(count: int) -> None:
            for n in range(count):
                if n % 3 == 0:
                    with rec.pause():
                        model(torch.ones(2))
                elif n % 3 == 1:
                    with pytest.raises(RuntimeError):
                        model(torch.ones(3))
                else:
                    model(torch.ones(2))
                    rec.pop()

        assert growth(run, 2_000) < 60_000


def test_retained_passes_bound_the_memory() -> None:
    model, x = Tiny(), torch.ones(256)
    with torch.no_grad(), Recorder(model, keep_op="mul", retain=10) as rec:

        def run(count: int) -> None:
            for _ in range(count):
                model(x)

        assert growth(run, 20_000) < 100_000
        assert len(rec.recording) == 10


def test_the_steps_of_a_loop_that_retains_are_bounded() -> None:
    model, x = Tiny(), torch.ones(4)
    with torch.no_grad(), Recorder(model, keep_op="mul", retain=10) as rec:

        def run(count: int) -> None:
            for _ in range(count):
                model(x)
                rec.step(reward=1.0)

        assert growth(run, 10_000) < 150_000
        assert len(rec.recording) == 10


class Never(nn.Module):
    """Runs no two passes alike."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        for bit in range(12):
            x = x.sin() if self.n >> bit & 1 else x.cos()
        return x


@pytest.mark.parametrize("keep", [{"keep_op": "relu"}, {"keep_op": lambda ctx: False}])
def test_a_model_that_never_runs_twice_alike_is_bounded(keep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MAX_TRIE_NODES", 500)
    model, x = Never(), torch.ones(1)
    with torch.no_grad(), Recorder(model, **keep) as rec:
        most = 0
        for _ in range(1500):
            model(x)
            most = max(most, rec._engine._passes.trie.size)
        assert most <= 500 + 13
        assert _nodes(rec._engine._passes.trie.root) <= 500 + 13
        assert len(rec._catalog.sites) <= 30


def _nodes(node: Any) -> int:
    return 1 + sum(map(_nodes, node.edges.values()))


def test_a_pass_is_recorded_right_after_the_trie_began_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MAX_TRIE_NODES", 100)
    model = Never()
    with torch.no_grad(), Recorder(model, keep_op="sin") as rec:
        for _ in range(200):
            model(torch.ones(1))
    for number in range(200):
        labels = [record.ctx.label for record in rec.recording if record.ctx.pass_index == number]
        assert labels == [f"sin_{n + 1}" for n in range((number + 1).bit_count())]


def test_modules_that_are_made_anew_are_let_go() -> None:
    class Replaces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(100, 100)

        def forward(self, x: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                self.head = nn.Linear(100, 100)
            return nn.Sequential(nn.Tanh())(self.head(x))

    model, x = Replaces(), torch.ones(1, 100)
    with torch.no_grad(), Recorder(model, keep_module="other") as rec:
        for _ in range(30):
            model(x)
        gc.collect()
        alive = sum(type(each) is nn.Linear and each.in_features == 100 for each in gc.get_objects())
        assert alive <= 3
        registry = rec._engine._passes.registry
        assert len(registry.by_id) == 2 and len(registry._strangers) <= 2


def test_closed_recorders_leave_no_tensors_behind() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.ones(1, 4)
    counts = []
    for turn in range(20):
        with Recorder(model, keep_op=True, keep_module=True, train_mode=True) as rec:
            model(x).sum().backward()
            assert len(rec.recording) == 5
        del rec
        if turn in (8, 19):
            gc.collect()
            counts.append(sum(issubclass(type(each), Tensor) for each in gc.get_objects()))
    assert counts[1] <= counts[0]


def test_a_record_costs_few_bytes_beside_its_tensor() -> None:
    model, x = Tiny(), torch.ones(1)
    with torch.no_grad(), Recorder(model, keep_op="mul") as rec:
        for _ in range(1000):
            model(x)
        assert len(rec.recording) == 1000
        gc.collect()
        tracemalloc.start()
        for _ in range(20_000):
            model(x)
        assert len(rec.recording) == 21_000
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    assert grown / 20_000 < 150  # torch's memory is not traced


def test_rows_of_failed_passes_are_used_again() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            if x.sum() < 0:
                raise ArithmeticError
            return y

    model = Fails()
    with Recorder(model, keep_op="mul") as rec:
        for _ in range(500):
            with pytest.raises(ArithmeticError):
                model(torch.full((1000,), -1.0))
        model(torch.ones(1000))
        rows = sum(block.stop - block.first for block in rec._ram._pool.blocks.values())
        assert rows < 10
    assert torch.equal(rec.recording.stack("/mul"), torch.full((1, 1000), 2.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "there is no predicate, so nothing could be kept; give keep_op="),
        ({"keep_op": None, "keep_module": None}, "there is no predicate"),
        ({"keep_op": kind("module_exit")}, "can't keep any op event; module events are selected by keep_module="),
        ({"keep_op": kind("input")}, "inputs and buffers become events with include_source_events=True"),
        ({"keep_module": op("relu")}, "can't keep any module event; ops, inputs and buffers are selected by keep_op="),
        ({"keep_op": op("relu") & kind("buffer")}, "can't keep any op event"),
    ],
)
def test_sessions_that_can_keep_nothing_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recorder(Tiny(), **options)


def test_a_session_that_only_its_sites_can_tell_to_be_empty_is_opened() -> None:
    Recorder(Tiny(), keep_op=structural(lambda ctx: False))


def test_settled_predicates_bound_what_is_remembered() -> None:
    model = Tiny()
    with torch.no_grad(), Recorder(model, keep_op=op("mul") & every(1000) & first(5)) as rec:
        for n in range(3000):
            model(torch.ones(1 + n % 200))
        assert len(rec._catalog.metas) == 1
    assert [r.ctx.pass_index for r in rec.recording] == [0]


def test_warnings_are_told_once() -> None:
    with pytest.warns(FastrecWarning) as told, Recorder(Tiny(), keep_op="mul") as rec:
        for _ in range(5):
            torch.vmap(Tiny())(torch.ones(2))
            torch.vmap(rec._roots[""])(torch.ones(2))
        rec.log(torch.ones(1))
    assert len(told.list) == 1
