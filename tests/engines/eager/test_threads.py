"""Work that a pass gives to another thread is told, because its ops are not seen."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec import FastrecWarning, Recorder, record
from fastrec.engines.eager.threads import THREAD_STARTS
from fastrec.graph import log_forward_pass, validate_saved_activations


class Parallel(nn.Module):
    """Computes a part of its pass as it is told."""

    def __init__(self, run: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.h, self.run = nn.Linear(4, 4), nn.Linear(4, 2), run

    def forward(self, x: Tensor) -> Any:
        return self.h(self.run(lambda value: torch.sigmoid(self.a(value)), x))


def by_thread(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    out: list[Tensor] = []
    thread = threading.Thread(target=lambda: out.append(function(x)))
    thread.start()
    thread.join()
    return out[0]


def by_subclass(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    class Worker(threading.Thread):
        def __init__(self) -> None:
            super().__init__()
            self.x = x

        def run(self) -> None:
            self.x = function(self.x)

    worker = Worker()
    worker.start()
    worker.join()
    return worker.x


def by_executor(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with ThreadPoolExecutor(2) as executor:
        return torch.cat(list(executor.map(function, x.chunk(2))))


def by_executor_of_its_own(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return EXECUTOR.submit(function, x).result()


EXECUTOR = ThreadPoolExecutor(1)


def by_pool(method: str) -> Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]:
    def run(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with ThreadPool(2) as pool:
            if method == "starmap":
                return torch.cat(pool.starmap(function, [(part,) for part in x.chunk(2)]))
            if method == "apply":
                return pool.apply(function, (x,))
            return torch.cat(list(getattr(pool, method)(function, x.chunk(2))))

    return run


WAYS = {
    "Thread.start": by_thread,
    "Worker": by_subclass,
    "ThreadPoolExecutor.submit": by_executor,
    "an executor of its own": by_executor_of_its_own,
    **{f"ThreadPool.{method}": by_pool(method) for method in ("map", "imap", "imap_unordered", "starmap", "apply")},
}


@pytest.mark.parametrize("run", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("engine", ["eager", "static"])
def test_a_pass_that_computes_in_another_thread_is_told(run: Any, engine: Any) -> None:
    net, x = Parallel(run), torch.randn(2, 4)
    with pytest.warns(FastrecWarning, match=r"gave work to another thread.*in the thread that calls it") as caught:
        with Recorder(net, keep_op=True, keep_module="h", engine=engine) as rec:
            for _ in range(2):
                out = net(x)
    assert torch.equal(rec.recording.stack("h")[-1], out)
    assert sum("another thread" in str(warning.message) for warning in caught) == 1


@pytest.mark.parametrize("run", WAYS.values(), ids=WAYS)
def test_a_graph_in_which_a_thread_is_missing_is_not_valid(run: Any) -> None:
    net, x = Parallel(run), torch.randn(2, 4)
    with pytest.warns(FastrecWarning, match="gave work to another thread"):
        log_forward_pass(net, x)
    report = validate_saved_activations(net, x)
    assert not report and "the ops that ran there were not seen" in str(report.first_failure)


def test_the_advice_records_what_was_missing() -> None:
    net, x = Parallel(lambda function, value: function(value)), torch.randn(2, 4)
    assert "/sigmoid" in record(net, x, keep_op=True).sites
    other = Parallel(by_executor_of_its_own)
    with Recorder(other, keep_op=True) as rec:

        def within(value: Tensor) -> Any:
            with rec.region():
                return torch.sigmoid(other.a(value))

        other.forward = lambda value: other.h(EXECUTOR.submit(within, value).result())  # type: ignore[method-assign]
        with pytest.warns(FastrecWarning, match=r"open a rec.region\(\) in the other thread"):
            other(x)
    assert {":region/sigmoid", "a/linear", "h/linear"} <= set(rec.recording.sites)


def test_threads_that_compute_nothing_are_not_told() -> None:
    class Logs(nn.Module):
        def forward(self, x: Tensor) -> Any:
            thread = threading.Thread(target=time.sleep, args=(0.0,))
            thread.start()
            thread.join()
            EXECUTOR.submit(print, float(x.sum())).result()
            return x.sin()

    assert record(Logs(), torch.ones(2), keep_op="sin").n_records == 1


def test_threads_outside_of_any_pass_are_not_told() -> None:
    net, x = nn.Linear(4, 2), torch.randn(2, 4)
    with Recorder(net, keep_op=True) as rec:
        by_thread(net, x)
        by_executor_of_its_own(net, x)
    assert rec.recording.n_passes == 2


def test_nothing_is_left_behind() -> None:
    start, submit, before = threading.Thread.start, ThreadPoolExecutor.submit, dict(vars(ThreadPool))
    net = nn.Linear(2, 2)
    with Recorder(net, keep_op=True):
        with Recorder(net, keep_op=True):
            net(torch.ones(2))
        assert threading.Thread.start is not start
        net(torch.ones(2))
    assert threading.Thread.start is start and ThreadPoolExecutor.submit is submit
    assert dict(vars(ThreadPool)) == before and not THREAD_STARTS._listeners
