"""Several threads and several recorders at once."""

import random
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec import FastrecError, Recorder
from fastrec.events.sites import Interned
from fastrec.predicates import every, module
from tests.contracts.engine import EVERYTHING
from tests.helpers.naive import Event, assert_same_events, events_of, naive_events

THREADS, PASSES = 8, 200


class Forks(nn.Module):
    """Takes one of several ways, of different ops and shapes, as its input says."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)
        self.side = nn.Sequential(nn.Linear(3, 3), nn.Tanh())

    def forward(self, x: Tensor, way: int) -> Tensor:
        if way % 3 == 0:
            x = self.lin(x).relu()
        elif way % 3 == 1:
            x = self.side(x).sin()
        else:
            x = torch.cat([self.lin(x), self.side(x)])
        if way % 2:
            x = x.relu() + way
        else:
            x = (x * way).sin()
        return self.lin(x)


@pytest.fixture(autouse=True)
def hectic() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*work: Callable[[], Any]) -> None:
    """Run functions at once, each in a thread, and raise what any of them raised."""
    failed: list[BaseException] = []

    def run(function: Callable[[], Any]) -> None:
        try:
            function()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def ways(seed: int) -> list[tuple[int, int, float]]:
    """For each pass which way, how many rows, and what is in them."""
    draw = random.Random(seed)
    return [(draw.randrange(6), draw.randrange(1, 4), float(draw.randrange(100))) for _ in range(PASSES)]


def test_no_row_is_wrong_and_passes_are_in_order() -> None:
    model, lock = Forks(), threading.Lock()
    taken: dict[float, tuple[int, int]] = {}

    def work(thread: int) -> None:
        for n, (way, rows, _) in enumerate(ways(thread)):
            mark = float(thread * PASSES + n)
            with lock:
                taken[mark] = (way, rows)
            model(torch.full((rows, 3), mark), way)

    with torch.no_grad():
        with Recorder(model, **EVERYTHING) as rec:
            together(*(lambda thread=thread: work(thread) for thread in range(THREADS)))
        by_pass: dict[int, list[Event]] = {}
        order = []
        for record in rec.recording:
            order.append((record.ctx.pass_index, record.ctx.event_index))
            by_pass.setdefault(record.ctx.pass_index, []).append(Event.of(record))
        assert order == sorted(order)
        assert sorted(by_pass) == list(range(THREADS * PASSES)) == list(range(rec.recording.n_passes))
        seen = set()
        for events in by_pass.values():
            mark = events[0].value[0, 0].item()
            seen.add(mark)
            way, rows = taken[mark]
            expected = naive_events(model, lambda m=mark, w=way, r=rows: model(torch.full((r, 3), m), w))
            assert_same_events(events, expected)
        assert seen == set(taken)


@pytest.mark.parametrize("capture", [{"keep_grad": True}, {"transform": lambda t: t * 2, "save_raw": False}])
def test_attached_and_transformed_values_of_threads_stay_apart(capture: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Identity())

    def work(thread: int) -> None:
        for n in range(50):
            model(torch.full((1 + n % 3,), float(thread), requires_grad=True) + n)

    with Recorder(model, keep_module=module("0").with_(**capture), retain=10_000) as rec:
        together(*(lambda thread=thread: work(thread) for thread in range(THREADS)))
    part = "activation" if "keep_grad" in capture else "transformed_activation"
    values = [getattr(record, part) for record in rec.recording["0"]]
    assert len(values) == THREADS * 50
    assert all(len(set(value.tolist())) == 1 for value in values)
    assert all(value.shape == record.ctx.tensor_shape for value, record in zip(values, rec.recording, strict=True))


def test_recorders_in_several_threads_do_not_disturb_each_other() -> None:
    models = [Forks() for _ in range(4)]
    recorded: dict[int, Any] = {}

    def work(number: int) -> None:
        model = models[number]
        for _ in range(5):
            with Recorder(model, **EVERYTHING) as rec:
                for way, rows, fill in ways(number)[:20]:
                    model(torch.full((rows, 3), fill), way)
                    models[(number + 1) % 4](torch.zeros(1, 3), 0)
            recorded[number] = rec.recording

    call = nn.Module.__call__
    with torch.no_grad():
        together(*(lambda number=number: work(number) for number in range(4)))
        assert nn.Module.__call__ is call
        for number in range(4):
            mine = recorded[number]
            # A recorder that opens while another thread is inside of the model meets its submodules first.
            whole = {r.ctx.pass_index: None for r in mine.select(entry="")}
            assert len(whole) >= 20
            for i in whole:
                events = events_of(mine, i)
                assert events[0].site == ":in[0]" and events[-1].site == ":out"
                assert len(events) >= 11


def test_recorders_on_one_model_open_and_close_while_threads_run() -> None:
    model, stop = Forks(), threading.Event()

    def act() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            model(torch.full((1 + n % 3, 3), float(n)), n)

    def watch() -> None:
        try:
            for _ in range(10):
                with Recorder(model, **EVERYTHING) as rec:
                    while rec.recording.n_passes < 5:
                        pass
                for number in sorted({record.ctx.pass_index for record in rec.recording.select(entry="")}):
                    events = events_of(rec.recording, number)
                    assert events[0].site == ":in[0]" and events[-1].site == ":out", [e.site for e in events]
        finally:
            watching.pop()
            if not watching:
                stop.set()

    call, watching = nn.Module.__call__, [1, 2]
    with torch.no_grad():
        together(act, act, watch, watch)
    assert nn.Module.__call__ is call


def test_a_region_and_a_sample_id_belong_to_their_thread() -> None:
    model, inside, done = nn.Sequential(nn.Identity()), threading.Event(), threading.Event()

    def other() -> None:
        assert inside.wait(10)
        model(torch.ones(1))
        done.set()

    def mine() -> None:
        with rec.region("act"):
            inside.set()
            assert done.wait(10)
            model(torch.zeros(1))

    with Recorder(model, keep_module="0") as rec:
        together(other, mine)
        together(
            *(lambda n=n: [rec.log(torch.full((1,), float(n)), sample_id=n) for _ in range(50)] for n in range(4)),
            lambda: [model(torch.full((1,), -1.0)) for _ in range(50)],
        )
    assert [(r.ctx.entry, r.activation.item()) for r in rec.recording][:2] == [("act", 0.0), ("", 1.0)]
    for record in list(rec.recording)[2:]:
        value = int(record.activation.item())
        assert record.ctx.sample_id == (None if value == -1 else value)


def test_passes_are_numbered_by_entry_in_all_threads() -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity())

    def work() -> None:
        for _ in range(60):
            model(torch.ones(1))
            model[1](torch.ones(1))

    with Recorder(model, keep_module=every(3)) as rec:
        together(*[work] * 4)
    numbers = [(r.ctx.entry, r.ctx.entry_pass) for r in rec.recording if r.ctx.site == "1"]
    assert sorted(numbers) == sorted((entry, n) for entry in ("", "1") for n in range(0, 240, 3))


def test_steps_and_reading_go_on_while_threads_act() -> None:
    model, stop = nn.Sequential(nn.Identity()), threading.Event()

    def act() -> None:
        for n in range(300):
            model(torch.full((2,), float(n)))
        stop.set()

    def mark() -> None:
        while not stop.is_set():
            rec.step(reward=1.0)
            recording = rec.recording
            assert len(recording) == recording.n_passes
            values = recording.stack("0") if len(recording) else torch.zeros(0, 2)
            assert (values[:, 0] == values[:, 1]).all()

    with Recorder(model, keep_module="0") as rec:
        together(act, mark)
        rec.step(reward=2.0)
    steps = [record.ctx.step for record in rec.recording]
    assert steps == sorted(steps) and len(steps) == 300


def test_popping_while_threads_act_hands_over_each_pass_once() -> None:
    model, stop, popped = nn.Sequential(nn.Identity()), threading.Event(), []

    def act(first: int) -> None:
        for n in range(200):
            model(torch.full((1 + n % 2,), float(first + n)))

    def pop() -> None:
        while not stop.is_set():
            popped.extend(record.activation[0].item() for record in rec.pop())

    def actors() -> None:
        together(*(lambda first=first: act(first) for first in range(0, 800, 200)))
        stop.set()

    with Recorder(model, keep_module="0") as rec:
        together(actors, pop)
        popped.extend(record.activation[0].item() for record in rec.pop())
    assert sorted(popped) == [float(n) for n in range(800)]


def test_a_number_of_the_catalog_is_given_out_with_its_item() -> None:
    def add(interned: Interned[int]) -> None:
        for item in range(300):
            number = interned.add(item)
            assert interned[number] == item

    for _ in range(20):
        interned: Interned[int] = Interned()
        together(*[partial(add, interned)] * 4)
        assert sorted(interned.items) == list(range(300))


def test_a_region_inside_of_another_is_refused() -> None:
    with Recorder(nn.Identity(), keep_op=True) as rec, rec.region():
        with pytest.raises(FastrecError, match="a region can't begin inside of a pass or of another region"):
            with rec.region("inner"):
                pass
        torch.ones(1).add(1)
    assert [r.ctx.site for r in rec.recording] == [":region/ones", ":region/add"]
