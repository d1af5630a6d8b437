"""What costs what, per event, in nanoseconds: ``python -m benchmarks.costs``.

Each figure is a difference of two loops that are timed in turn, divided by the events in which they differ.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from statistics import median
from time import thread_time_ns
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastrec import FastrecWarning, Recorder

OPS = 50
"""How many ops or modules one pass has."""
PASSES, ROUNDS = 20, 60
BYTES_4K = torch.zeros(1024)

Block = Callable[[], Any]
"""Makes the context manager in which passes are timed."""


class Ops(nn.Module):
    """Ops and no modules inside."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(OPS):
            out = torch.tanh(x)
        return out


class Modules(nn.Module):
    """Modules and no ops inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Identity() for _ in range(OPS))

    def forward(self, x: Tensor) -> Tensor:
        for module in self.inner:
            x = module(x)
        return x


class Bystander(TorchFunctionMode):
    """A function mode that does nothing but call on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **kwargs) if kwargs else func(*args)


@contextmanager
def forwarding_call() -> Iterator[None]:
    """A wrapper of all module calls that does nothing but call on."""
    original = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]


@contextmanager
def hooked(model: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    """A forward hook on each module inside."""
    with ExitStack() as stack:
        for module in model.inner:  # type: ignore[union-attr]
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def seconds_of(model: nn.Module, block: Block, after: str = "") -> float:
    """The time of one pass in ns, with what the block's object does after each pass."""
    with block() as opened:
        then = getattr(opened, after) if after else int
        for _ in range(3):
            model(BYTES_4K)
            then()
        began = thread_time_ns()
        for _ in range(PASSES):
            model(BYTES_4K)
            then()
        return (thread_time_ns() - began) / PASSES


def difference(model: nn.Module, block: Block, other: Block, events: int, after: str = "") -> float:
    """What one event costs more in the first block than in the second, in ns."""
    return median((seconds_of(model, block, after) - seconds_of(model, other, after)) / events for _ in range(ROUNDS))


def alone(function: Callable[[], Any]) -> float:
    """The time of a call in ns."""

    def once() -> float:
        began = thread_time_ns()
        for _ in range(OPS):
            function()
        return (thread_time_ns() - began) / OPS

    return median(once() for _ in range(ROUNDS))


def costs() -> dict[str, float]:
    """All figures by name, in ns."""
    ops, modules, empty = Ops(), Modules(), nn.Identity()

    def session(model: nn.Module, **options: Any) -> Block:
        return lambda: Recorder(model, **options)

    def unseen(model: nn.Module) -> Block:
        return session(model, keep_module="nosuchmodule")

    watched, kept = session(ops, keep_op="nosuchop"), session(ops, keep_op="tanh")
    asked = session(ops, keep_op=lambda ctx: ctx.layer_type == "nosuchop")
    bare: Block = nullcontext
    found = {
        "torch: tanh of 4 KiB": alone(lambda: torch.tanh(BYTES_4K)),
        "torch: detach().clone() of 4 KiB": alone(lambda: BYTES_4K.detach().clone()),
        "torch: a function mode that only calls on, per op": difference(ops, Bystander, bare, OPS),
        "torch: pushing and popping that mode, per pass": difference(empty, bare, bare, 1)
        + alone(lambda: Bystander().__enter__().__exit__(None, None, None)),
        "torch: a forward hook that does nothing, per module call": difference(
            modules, lambda: hooked(modules, lambda *_: None), bare, OPS
        ),
        "torch: a wrapper of __call__ that only calls on, per module call": difference(
            modules, forwarding_call, bare, OPS
        ),
        "fastrec: an op that is not kept": difference(ops, watched, bare, OPS),
        "fastrec: a module call that is not kept": difference(modules, unseen(modules), bare, OPS),
        "fastrec: a pass, begin to end, without the mode": difference(empty, unseen(empty), bare, 1),
        "fastrec: a pass, begin to end, with the mode": difference(empty, session(empty, keep_op="nosuchop"), bare, 1),
        "fastrec: keeping 4 KiB, retained": difference(ops, kept, watched, OPS),
        "fastrec: keeping 4 KiB, popped every pass": difference(ops, kept, watched, OPS, after="pop"),
        "fastrec: asking a lambda": difference(ops, asked, watched, OPS),
        "fastrec: pop() of a pass that kept nothing": _pop(empty, session(empty, keep_op="nosuchop")),
        f"fastrec: pop() of a pass with {OPS} records": _pop(ops, kept),
    }
    return found


def _pop(model: nn.Module, block: Block) -> float:
    times = []
    with block() as rec:
        for _ in range(PASSES * ROUNDS):
            model(BYTES_4K)
            began = thread_time_ns()
            rec.pop()
            times.append(thread_time_ns() - began)
    return median(times)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FastrecWarning)  # names of keys that matched nothing
    with torch.no_grad():
        found = costs()
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w") as file:
            json.dump(found, file, indent=1)
    for name, ns in found.items():
        print(f"{ns:8.0f} ns  {name}")


if __name__ == "__main__":
    main()
