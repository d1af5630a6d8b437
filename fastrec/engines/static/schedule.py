"""What there is to do in a pass of which it is known how it runs: one step for each module call that matters."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fastrec._torch.internals import call_impl
from fastrec.engines._protocol import MakePassBatch, MakeSkipTest, PassBatch, Tap
from fastrec.engines.eager.mode import OpMode
from fastrec.engines.eager.trie import LEAVE, RaisedStep, SourceStep, TrieNode
from fastrec.engines.static.warmup import Fed, Warmup, WarmupTap

UNHOOKED, STEP, PLAIN, HIDDEN = range(4)
"""How a module is called: as torch calls one without hooks, as a step, by a ``_call_impl`` of its own, or muted."""


class ScheduledCall:
    """One call of a module, and what is taken from it.

    ``ops`` are fed with what the last op gave, by the path under which the module returned it, ``outs`` with what it
    returned. Where it returns a single tensor, ``taps`` are those of both, and ``lasting`` tells for each whether its
    value lasts until the pass ends; it ``is_held`` until then where that is all. A ``watched`` step runs as the eager
    engine runs it; a ``plain`` one has nothing but ``taps``.
    """

    __slots__ = (
        *("after", "entered", "hidden", "inside", "is_held", "lasting", "left", "module", "ops", "outs", "plain"),
        *("takes_in", "taps", "watched"),
    )

    def __init__(self, entered: TrieNode) -> None:
        assert entered.known is not None
        self.module: nn.Module = entered.known.module
        self.entered = entered
        self.left: TrieNode | None = None
        self.ops: Sequence[Fed] = ()
        self.outs: Sequence[Fed] = ()
        self.taps: tuple[Tap, ...] = ()
        self.lasting: tuple[bool, ...] = ()
        self.is_held = False
        self.takes_in = False
        self.watched = False
        self.inside = False  # of a watched step, which sees to it
        self.hidden = entered.hidden
        self.plain = False
        self.after: ScheduledCall = self

    @property
    def matters(self) -> bool:
        """Whether there is anything to take."""
        return bool(self.takes_in or self.watched or self.ops or self.outs)

    def settle(self, lasting: Container[WarmupTap]) -> None:
        """Work out the quick way."""
        self.plain = not (self.takes_in or self.watched or self.hidden)
        watches = [watch for watch, path in (*self.ops, *self.outs) if not path]
        self.taps = tuple(watch.inner for watch in watches)
        self.lasting = tuple(watch in lasting for watch in watches)
        self.is_held = self.lasting == (True,)

    @property
    def is_simple(self) -> bool:
        """Whether nothing is taken but single tensors that the module returns."""
        return self.plain and not any(path for _, path in (*self.ops, *self.outs))


class Schedule:
    """The steps of all passes that run alike, which end at the node ``final`` of the trie.

    ``whole`` passes run eagerly from beginning to end, because something is kept outside of any step. ``idle`` tells
    of a run that begins whether nothing can be kept in it; None where that can't be told. ``batch`` is fed when a pass
    ends; None where taps have to be fed at their events.
    """

    def __init__(self, final: TrieNode, lessons: Warmup, idle: MakeSkipTest, batch: MakePassBatch) -> None:
        path = path_to(final)
        calls = _Calls(path, lessons)
        self.final = final
        self.end = _end()
        self.modules: dict[int, int] = {}
        self.idle_modules: dict[int, int] = {}
        self._steps = calls.steps
        self.look_again()
        self.first = calls.chain(self.modules, self.end)
        self.whole = calls.whole or (self.first.watched and self.first.entered is path[0])
        self.idle = idle([watch.inner for watch in calls.watches])
        self.batch: PassBatch | None = None
        can_hold = calls.are_simple and lessons.strange.isdisjoint(calls.watches)
        if can_hold and not lessons.lasting.keys().isdisjoint(calls.watches):
            taps = [watch.inner for watch in calls.watches]
            self.batch = batch(taps, [lessons.lasting.get(watch, 0) for watch in calls.watches])  # 0: of a copy

    def look_again(self) -> None:
        """Take in modules that others of their class have replaced."""
        kinds: dict[int, int] = {}
        idle: dict[int, int] = {}
        for step in self._steps:
            assert step.entered.known is not None
            step.module = step.entered.known.module  # held here, so that nothing else gets its id
            key = id(step.module)
            calm = HIDDEN if step.hidden else UNHOOKED if type(step.module)._call_impl is call_impl else PLAIN
            idle[key] = calm
            if not step.inside:
                kinds[key] = STEP if step.matters or kinds.get(key) == STEP else calm
        self.modules, self.idle_modules = kinds, idle


def path_to(final: TrieNode) -> list[TrieNode]:
    """The nodes from the first event of a pass to a later one."""
    path = []
    node: TrieNode | None = final
    while node is not None and node.parent is not None:
        path.append(node)
        node = node.parent
    return path[::-1]


def _taps_of(node: TrieNode) -> list[Fed]:
    """The taps of a value and of its leaves, with their paths."""
    found = {"": node.tap, **(node.leaf_taps or {})}
    return [(tap, path) for path, tap in found.items() if isinstance(tap, WarmupTap)]


def _taps_inside(node: TrieNode) -> list[WarmupTap]:
    """Those of a composite's inside, on whatever path."""
    found = [watch for watch, _ in _taps_of(node)]
    for below in (*node.edges.values(), *([node.opens] if node.opens else [])):
        found += _taps_inside(below)
    return found


def _end() -> ScheduledCall:
    step = ScheduledCall.__new__(ScheduledCall)
    step.module = nn.Module()  # which nobody calls
    step.after = step
    step.watched = False
    return step


class _Calls:
    """The module calls of a path as steps, and all taps on it."""

    def __init__(self, path: Sequence[TrieNode], lessons: Warmup) -> None:
        self.whole = False
        self.steps: list[ScheduledCall] = []
        self.watches: list[WarmupTap] = []
        self._lessons = lessons
        self._open: list[ScheduledCall] = []
        self._inside: dict[ScheduledCall, list[ScheduledCall]] = {}
        following: list[TrieNode | None] = [*path[1:], None]
        for node, after in zip(path, following, strict=True):
            self._add(node, after)
        for step in self.steps:
            step.settle(lessons.lasting)
            for inner in self._inside[step] if step.watched else ():
                inner.inside = True

    @property
    def are_simple(self) -> bool:
        """Whether all that is taken are single tensors that modules return."""
        return not self.whole and all(step.is_simple or not step.matters for step in self.steps)

    def chain(self, kinds: Mapping[int, int], end: ScheduledCall) -> ScheduledCall:
        """The first of the steps, each of which leads to the next: all calls of the modules that matter somewhere."""
        chained = [step for step in self.steps if not step.inside and kinds[id(step.module)] == STEP]
        after = end
        for step in reversed(chained):
            step.after = after
            after = step
        return after

    def _add(self, node: TrieNode, after: TrieNode | None) -> None:
        fed = [(watch, path) for watch, path in _taps_of(node) if watch in self._lessons.fed]
        self.watches += [watch for watch, _ in fed]
        if isinstance(node.step, RaisedStep):
            while len(self._open) + 1 > node.step.depth:
                self._open.pop()
        elif isinstance(node.step, SourceStep):
            self.whole = True
        elif node.step is LEAVE:
            step = self._open.pop()
            step.left, step.outs = node, fed
            if fed:
                self._unfuse()
        elif node.site.kind == "module_enter":
            self._enter(ScheduledCall(node), takes_in=bool(fed))
        elif fed or node.opens is not None:
            self._op(node, after)

    def _enter(self, step: ScheduledCall, *, takes_in: bool) -> None:
        step.takes_in = takes_in
        if takes_in:
            self._unfuse()
        for around in self._open:
            self._inside[around].append(step)
        self.steps.append(step)
        self._inside[step] = []
        self._open.append(step)

    def _op(self, node: TrieNode, after: TrieNode | None) -> None:
        self._unfuse()
        if not self._open:
            self.whole = True
            return
        step = self._open[-1]
        is_output = node.opens is None and after is not None and after.step is LEAVE and node in self._lessons.outputs
        if is_output:
            step.ops = self._lessons.outputs[node]
        else:
            step.watched = True
        if node.opens is not None:
            self.watches += _taps_inside(node.opens)

    def _unfuse(self) -> None:
        """Something is kept inside of the open modules: where it would compute with a fused kernel, one is watched."""
        for step in self._open:
            assert step.entered.known is not None
            step.watched |= step.entered.known.may_fuse


class Replay:
    """Where a thread is in a pass that runs by a plan."""

    __slots__ = ("batch", "course", "held", "mode", "modules", "plan", "run", "step", "times")

    batch: PassBatch
    course: Route
    held: list[Tensor] | None
    mode: OpMode
    modules: Mapping[int, int]
    plan: Schedule
    run: Any
    step: ScheduledCall
    times: list[float]


class Route:
    """What is known of the passes of one entry that run in the same circumstances."""

    __slots__ = ("called", "last", "left", "lessons", "plan", "tries")

    def __init__(self, called: str) -> None:
        self.called = called
        self.forget()

    def forget(self) -> None:
        """Learn anew."""
        self.plan: Schedule | None = None
        self.last: TrieNode | None = None
        self.lessons = Warmup()
        self.tries = 0
        self.left = 0


def call_name(step: ScheduledCall) -> str:
    """The module call that a step is."""
    assert step.entered.known is not None
    return step.entered.known.name


def _site(node: TrieNode) -> str:
    known = node.known
    if known is None:
        return node.site.name
    return known.name if node.site.kind == "module_exit" else f"{known.address}:in"


def start_of(node: TrieNode) -> TrieNode:
    """The root of the trie that a node is in."""
    while node.parent is not None:
        node = node.parent
    return node


def first_difference(expected: TrieNode, found: TrieNode) -> str:
    """The first event in which two passes differ."""
    was, now = path_to(expected), path_to(found)
    for one, other in zip(was, now, strict=False):
        if one is not other:
            return f"{_site(other)!r} came where {_site(one)!r} was expected"
    if len(now) > len(was):
        return f"{_site(now[len(was)])!r} came after the last event that was expected"
    return f"{_site(was[len(now)])!r} did not come"
