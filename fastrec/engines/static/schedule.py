"""What there is to do in a pass that runs as earlier ones did: a ``ScheduledCall`` for each module call that matters.

    warm-up pass:  Linear entered, linear, Linear returned, Tanh entered, tanh (kept), Tanh returned
    schedule:      Tanh: feed the tap of `tanh` with what the call returns

The words are those of CUDA graphs in torch: a few passes of *warm-up*, then *replays*. A ``Route`` is what is known of
the passes that begin in the same circumstances, a ``Schedule`` is made of its path through the trie, and a ``Replay``
is where a thread stands in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fastrec._torch.internals import call_impl
from fastrec.engines._protocol import MakePassBatch, MakeSkipTest, PassBatch, Tap
from fastrec.engines.eager.mode import OpMode
from fastrec.engines.eager.trie import LEAVE, RaisedStep, SourceStep, TrieNode
from fastrec.engines.static.warmup import TapAtPath, Warmup, WarmupTap, WarmupThread

UNHOOKED, SCHEDULED, CUSTOM, OPAQUE = range(4)
"""How a module is called: as torch calls one without hooks, as its scheduled call says, by the ``_call_impl`` of its
own class, or unrecorded. Plain numbers, because this is looked up for every module call."""


class StaticThread(WarmupThread):
    """What a thread is doing: a replay, or an eager pass of a route."""

    replay: Replay | None = None
    spare_replay: Replay | None = None
    route: Route | None = None


class Route:
    """What is known of the passes of one entry that run in the same circumstances.

    ``final`` is the last event of the last eager pass, ``attempts`` counts the eager passes that ran differently, and
    ``replays_left`` the replays until an eager pass is made again.
    """

    __slots__ = ("attempts", "entry", "final", "replays_left", "schedule", "warmup")

    def __init__(self, entry: str) -> None:
        self.entry = entry
        self.forget()

    def forget(self) -> None:
        """Learn anew."""
        self.schedule: Schedule | None = None
        self.final: TrieNode | None = None
        self.warmup = Warmup()
        self.attempts = 0
        self.replays_left = 0


class Replay:
    """Where a thread is in a pass that runs by a schedule.

    ``ways`` says for each module how it is called. ``values`` and ``times`` are held for the ``batch`` until the pass
    ends; None where taps are fed at once. ``mode`` is for what is done as in an eager pass.
    """

    __slots__ = ("batch", "mode", "next_call", "route", "run", "schedule", "times", "values", "ways")

    route: Route
    schedule: Schedule
    ways: Mapping[int, int]
    next_call: ScheduledCall
    run: Any
    values: list[Tensor] | None
    times: list[float]
    batch: PassBatch[Any]
    mode: OpMode


class ScheduledCall:
    """One call of a module, and what is taken from it.

    ``op_taps`` are fed with what the last op inside gave, by the path at which the module returned it; ``out_taps``
    with what it returned. Where it returns a single tensor, ``taps`` are those of both, and ``are_lasting`` tells for
    each whether its value lasts until the pass ends; ``is_one_lasting`` where there is one, and it does. An
    ``is_watched`` call runs as in an eager pass, with the calls inside of it. An ``is_plain`` one has nothing but
    ``taps``.
    """

    __slots__ = (
        *("module", "enter_node", "exit_node", "next_call"),
        *("op_taps", "out_taps", "taps", "are_lasting", "is_one_lasting"),
        *("takes_arguments", "is_watched", "is_inside_watched", "is_opaque", "is_plain"),
    )

    def __init__(self, enter_node: TrieNode) -> None:
        assert enter_node.tracked is not None
        self.module: nn.Module = enter_node.tracked.module
        self.enter_node = enter_node
        self.exit_node: TrieNode | None = None
        self.next_call: ScheduledCall = self
        self.op_taps: Sequence[TapAtPath] = ()
        self.out_taps: Sequence[TapAtPath] = ()
        self.taps: tuple[Tap[Any], ...] = ()
        self.are_lasting: tuple[bool, ...] = ()
        self.is_one_lasting = False
        self.takes_arguments = False
        self.is_watched = False
        self.is_inside_watched = False
        self.is_opaque = enter_node.is_opaque
        self.is_plain = False

    @classmethod
    def end(cls) -> ScheduledCall:
        """What stands behind the last call: a call of a module that nobody calls."""
        call = cls.__new__(cls)
        call.module = nn.Module()
        call.next_call = call
        call.is_watched = False
        return call

    @property
    def name(self) -> str:
        assert self.enter_node.tracked is not None
        return self.enter_node.tracked.name

    @property
    def matters(self) -> bool:
        """Whether there is anything to take."""
        return bool(self.takes_arguments or self.is_watched or self.op_taps or self.out_taps)

    @property
    def takes_single_tensors(self) -> bool:
        """Whether nothing is taken but single tensors that the module returns."""
        return self.is_plain and not any(path for _, path in (*self.op_taps, *self.out_taps))

    def settle(self, lasting: Mapping[WarmupTap, int]) -> None:
        """All is known: work out what makes a replay quick."""
        self.is_plain = not (self.takes_arguments or self.is_watched or self.is_opaque)
        taps = [tap for tap, path in (*self.op_taps, *self.out_taps) if not path]
        self.taps = tuple(tap.tap for tap in taps)
        self.are_lasting = tuple(tap in lasting for tap in taps)
        self.is_one_lasting = self.are_lasting == (True,)


class Schedule:
    """The calls of all passes that run alike, which end at the node ``final`` of the trie.

    ``runs_eagerly``: something is kept outside of any scheduled call, so every pass runs eagerly. ``skip_test`` tells
    of a run that begins whether nothing will be kept in it; None where that can't be told. ``idle_ways`` are the ways
    for such a pass. ``batch`` is fed when a pass ends; None where taps have to be fed at their events.
    """

    def __init__(
        self, final: TrieNode, warmup: Warmup, make_skip_test: MakeSkipTest[Any], make_batch: MakePassBatch[Any]
    ) -> None:
        path = path_to(final)
        calls = _Calls(path, warmup)
        self.end = ScheduledCall.end()
        self.ways: Mapping[int, int] = {}
        self.idle_ways: Mapping[int, int] = {}
        self._calls = calls.calls
        self.look_again()
        self.first = self._chain()
        self.runs_eagerly = calls.needs_eager_passes or (self.first.is_watched and self.first.enter_node is path[0])
        taps = [tap.tap for tap in calls.taps]
        self.skip_test = make_skip_test(taps)
        self.batch: PassBatch[Any] | None = None
        can_hold = calls.takes_single_tensors and warmup.unusual.isdisjoint(calls.taps)
        if can_hold and not warmup.lasting.keys().isdisjoint(calls.taps):
            # A value that does not last is held as a copy, whose version is 0.
            self.batch = make_batch(taps, [warmup.lasting.get(tap, 0) for tap in calls.taps])

    def look_again(self) -> None:
        """Take in modules that others of their class have replaced."""
        ways: dict[int, int] = {}
        idle_ways: dict[int, int] = {}
        for call in self._calls:
            assert call.enter_node.tracked is not None
            call.module = call.enter_node.tracked.module  # held here, so that no other module can get its id
            key = id(call.module)
            has_torchs_call = type(call.module)._call_impl is call_impl
            unscheduled = OPAQUE if call.is_opaque else UNHOOKED if has_torchs_call else CUSTOM
            idle_ways[key] = unscheduled
            if not call.is_inside_watched:
                ways[key] = SCHEDULED if call.matters or ways.get(key) == SCHEDULED else unscheduled
        self.ways, self.idle_ways = ways, idle_ways

    def _chain(self) -> ScheduledCall:
        """The first call, which leads to the others: all calls of each module that is called by schedule."""
        first = self.end
        for call in reversed(self._calls):
            if not call.is_inside_watched and self.ways[id(call.module)] == SCHEDULED:
                call.next_call, first = first, call
        return first


class _Calls:
    """The module calls on a path through the trie, and all taps on it."""

    def __init__(self, path: Sequence[TrieNode], warmup: Warmup) -> None:
        self.calls: list[ScheduledCall] = []
        self.taps: list[WarmupTap] = []
        self.needs_eager_passes = False  # something is kept outside of any module call
        self._warmup = warmup
        self._open: list[ScheduledCall] = []
        self._inside: dict[ScheduledCall, list[ScheduledCall]] = {}
        following: list[TrieNode | None] = [*path[1:], None]
        for node, next_node in zip(path, following, strict=True):
            self._add(node, next_node)
        for call in self.calls:
            call.settle(warmup.lasting)
            for inner in self._inside[call] if call.is_watched else ():
                inner.is_inside_watched = True

    @property
    def takes_single_tensors(self) -> bool:
        """Whether all that is taken are single tensors that modules return."""
        if self.needs_eager_passes:
            return False
        return all(call.takes_single_tensors or not call.matters for call in self.calls)

    def _add(self, node: TrieNode, next_node: TrieNode | None) -> None:
        taps = [(tap, path) for tap, path in _taps_of(node) if tap in self._warmup.fed]
        self.taps += [tap for tap, _ in taps]
        if isinstance(node.step, RaisedStep):
            while len(self._open) + 1 > node.step.depth:
                self._open.pop()
        elif isinstance(node.step, SourceStep):
            self.needs_eager_passes = True
        elif node.step is LEAVE:
            call = self._open.pop()
            call.exit_node, call.out_taps = node, taps
            if taps:
                self._watch_fused()
        elif node.site.kind == "module_enter":
            self._enter(ScheduledCall(node), takes_arguments=bool(taps))
        elif taps or node.inside is not None:
            self._op(node, next_node)

    def _enter(self, call: ScheduledCall, *, takes_arguments: bool) -> None:
        call.takes_arguments = takes_arguments
        if takes_arguments:
            self._watch_fused()
        for around in self._open:
            self._inside[around].append(call)
        self.calls.append(call)
        self._inside[call] = []
        self._open.append(call)

    def _op(self, node: TrieNode, next_node: TrieNode | None) -> None:
        """An op with something kept: taken from the call of its module if that returns it, else watched there."""
        self._watch_fused()
        if not self._open:
            self.needs_eager_passes = True
            return
        call = self._open[-1]
        is_last = next_node is not None and next_node.step is LEAVE
        if is_last and node.inside is None and node in self._warmup.outputs:
            call.op_taps = self._warmup.outputs[node]
        else:
            call.is_watched = True
        if node.inside is not None:
            self.taps += _taps_inside(node.inside)

    def _watch_fused(self) -> None:
        """Something is kept inside of the open modules: those that would use a fused kernel have to be watched."""
        for call in self._open:
            assert call.enter_node.tracked is not None
            call.is_watched |= call.enter_node.tracked.has_fused_path


def _taps_of(node: TrieNode) -> list[TapAtPath]:
    """The taps of a value and of its leaves, with their paths."""
    taps = {"": node.tap, **(node.leaf_taps or {})}
    return [(tap, path) for path, tap in taps.items() if isinstance(tap, WarmupTap)]


def _taps_inside(node: TrieNode) -> list[WarmupTap]:
    """Those from a node on, on whatever path."""
    taps = [tap for tap, _ in _taps_of(node)]
    for below in (*node.edges.values(), *([node.inside] if node.inside else [])):
        taps += _taps_inside(below)
    return taps


def path_to(final: TrieNode) -> list[TrieNode]:
    """The nodes from the first event of a pass to a later one."""
    path = []
    node: TrieNode | None = final
    while node is not None and node.parent is not None:
        path.append(node)
        node = node.parent
    return path[::-1]


def first_difference(expected: TrieNode, actual: TrieNode) -> str:
    """The first event in which two passes differ, in words."""
    expected_path, actual_path = path_to(expected), path_to(actual)
    for expected_node, node in zip(expected_path, actual_path, strict=False):
        if expected_node is not node:
            return f"{_name(node)!r} came where {_name(expected_node)!r} was expected"
    if len(actual_path) > len(expected_path):
        return f"{_name(actual_path[len(expected_path)])!r} came after the last event that was expected"
    return f"{_name(expected_path[len(actual_path)])!r} did not come"


def _name(node: TrieNode) -> str:
    tracked = node.tracked
    if tracked is None:
        return node.site.name
    return tracked.name if node.site.kind == "module_exit" else tracked.input_prefix
