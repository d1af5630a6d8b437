"""What the static engine learns from a pass that runs eagerly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastrec._torch.internals import functorch_level, no_function_modes
from fastrec._torch.tensors import have_sole_owner, own_their_storage
from fastrec._torch.trees import leaves
from fastrec.engines._protocol import Listener, Tap
from fastrec.engines.eager.mode import ThreadState
from fastrec.engines.eager.trie import TrieNode
from fastrec.events.position import Position
from fastrec.events.sites import Site

Snapshot = tuple[int | None, Tensor]
"""A version and a copy of a value."""

Fed = tuple["WarmupTap", str]
"""A tap, and under which path a module returned the value that it was fed with."""


class StaticThread(ThreadState):
    """What a thread is doing: a pass by a plan, or one that teaches."""

    now: Any = None
    spare_now: Any = None
    course: Any = None
    lesson: WarmupPass | None = None

    def mute(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function of which nothing is recorded, calls inside of it included."""
        now, lesson = self.now, self.lesson
        self.now = self.lesson = None
        try:
            return super().mute(function, args, kwargs)
        finally:
            self.now, self.lesson = now, lesson


class WarmupPass:
    """Watches in one pass which ops gave what their module then returned, and which values nobody writes to later."""

    def __init__(self) -> None:
        self._fed: list[tuple[WarmupTap, Tensor, Snapshot]] = []
        self.outputs: dict[TrieNode, list[Fed]] = {}
        self.fed: set[WarmupTap] = set()
        self.strange: set[WarmupTap] = set()
        self._place: Position | None = None
        self._seen: list[tuple[WarmupTap, Tensor, Snapshot]] = []
        self._strange = False

    def saw(self, watch: WarmupTap, value: Tensor) -> None:
        """An event has a value; only what the last op gave can be what its module returns next."""
        self.fed.add(watch)
        if type(value) is Tensor and functorch_level() is None and watch.place.site.kind != "module_enter":
            self._fed.append((watch, value, (_version(value), _copy(value))))
        else:
            self.strange.add(watch)
        if watch.place.site.kind == "op":
            self._saw_op(watch, value)

    def lasting(self) -> dict[WarmupTap, int]:
        """Which taps were fed with values that are as they were at the end of the pass, with their versions then.

        Only those that nobody else has then: others may be written to by whoever has them.
        """
        found = {}
        for watch, version, holder in [(watch, was[0], [value]) for watch, value, was in self._take_fed()]:
            if version is None or not have_sole_owner(holder) or not own_their_storage(holder):
                continue
            if holder[0].nbytes == holder[0].untyped_storage().nbytes():
                found[watch] = version
        return found

    def _take_fed(self) -> list[tuple[WarmupTap, Tensor, Snapshot]]:
        fed = [one for one in self._fed if _is_as_it_was(one[1], *one[2])]
        self._fed = []
        self._seen.clear()
        return fed

    def _saw_op(self, watch: WarmupTap, value: Tensor) -> None:
        if watch.place is not self._place:
            self._place, self._strange = watch.place, False
            self._seen.clear()
        if type(value) is not Tensor or functorch_level() is not None:
            self._strange = True
            return
        self._seen.append((watch, value, (_version(value), _copy(value))))

    def returned(self, left: TrieNode, module: nn.Module, out: Any) -> None:
        """A module returned, which led to a node."""
        op = left.parent
        if left.known is not None and left.known.module is module and op is not None and op is self._place:
            paths = {id(value): path for path, value in reversed(list(leaves(out)))}
            is_output = all(id(value) in paths and _is_as_it_was(value, *was) for _, value, was in self._seen)
            if is_output and not self._strange:
                self.outputs[op] = [(watch, paths[id(value)]) for watch, value, _ in self._seen]
        self._place = None
        self._seen.clear()


class Warmup:
    """What all lessons of a course agree about.

    ``fed`` are the taps that were fed, ``strange`` those of them that were fed with a subclass of tensors or otherwise
    not as usual, ``outputs`` the ops whose values their module returned, ``lasting`` the values that nobody writes to
    before the pass ends, by their taps, with their versions then.
    """

    def __init__(self) -> None:
        self.fed: set[WarmupTap] = set()
        self.strange: set[WarmupTap] = set()
        self.outputs: dict[TrieNode, list[Fed]] = {}
        self.lasting: dict[WarmupTap, int] = {}
        self._any = False

    def add(self, lesson: WarmupPass) -> None:
        """A pass has ended that ran as those before it."""
        outputs, lasting = lesson.outputs, lesson.lasting()
        if self._any:
            outputs = {op: fed for op, fed in outputs.items() if self.outputs.get(op) == fed}
            lasting = {watch: n for watch, n in lasting.items() if self.lasting.get(watch) == n}
        self.fed |= lesson.fed
        self.strange |= lesson.strange
        self.outputs, self.lasting, self._any = outputs, lasting, True


class WarmupTap:
    """Feeds the listener's tap, and tells the lesson of this thread if there is one."""

    __slots__ = ("inner", "place", "thread")

    def __init__(self, inner: Tap, place: Position, thread: StaticThread) -> None:
        self.inner = inner
        self.place = place
        self.thread = thread

    def __call__(self, run: Any, value: Tensor) -> None:
        lesson = self.thread.lesson
        if lesson is not None:
            lesson.saw(self, value)
        self.inner(run, value)


class WarmupListener:
    """Stands between the eager engine and its listener."""

    def __init__(self, listener: Listener, thread: StaticThread) -> None:
        self._listener = listener
        self._thread = thread
        self.may_keep = listener.may_keep
        self.begin = listener.begin
        self.end = listener.end

    def tap(self, place: Position, site: Site) -> Tap | None:
        """The tap of a place, watched."""
        inner = self._listener.tap(place, site)
        return None if inner is None else WarmupTap(inner, place, self._thread)


def _version(value: Tensor) -> int | None:
    return None if value.is_inference() else value._version


def _copy(value: Tensor) -> Tensor:
    with no_function_modes(), torch.no_grad():
        return value.detach().clone()


def _is_as_it_was(value: Tensor, version: int | None, copy: Tensor) -> bool:
    if _version(value) != version or value.shape != copy.shape or value.is_complex():
        return False
    # To the bit, for numpy and .data write past the version.
    with no_function_modes(), torch.no_grad():
        now, then = (t.detach().contiguous().reshape(-1) for t in (value, copy))
        return torch.equal(now.view(torch.uint8), then.view(torch.uint8)) if now.numel() else True
