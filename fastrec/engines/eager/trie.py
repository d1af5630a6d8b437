"""Passes as paths in a trie: what an event's place is called is worked out once, then found by one lookup per event.

A node is an event that came after a certain sequence of events. Everything that only depends on that sequence
(site, label, indices, history) is stored in the node; a pass that runs as an earlier one did walks existing nodes.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fastrec.engines._protocol import Tap
from fastrec.engines.eager.modules import TrackedModule
from fastrec.events.position import Position
from fastrec.events.sites import Frame, Kind, Site
from fastrec.ops.facts import OpFacts

LEAVE = "leave"
"""The edge that leaves the innermost module."""

INSIDE = "inside"
"""The edge into a composite; no lookup goes through it."""


class RaisedStep:
    """The edge out of all frames down to a depth, after an exception that the user's code caught."""

    __slots__ = ("depth",)

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RaisedStep) and other.depth == self.depth

    def __hash__(self) -> int:
        return hash((RaisedStep, self.depth))


class SourceStep:
    """The edge of an input or a buffer that is read."""

    __slots__ = ("kind", "path")

    def __init__(self, kind: Kind, path: str) -> None:
        self.kind: Kind = kind
        self.path = path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SourceStep) and (other.kind, other.path) == (self.kind, self.path)

    def __hash__(self) -> int:
        return hash((self.kind, self.path))


class TrieNode(Position):
    """One event after a certain sequence of events in its pass."""

    __slots__ = (
        "apart",
        "depth",
        "edges",
        "entered",
        "facts",
        "following",
        "hidden",
        "known",
        "leaf_taps",
        "left",
        "module",
        "opens",
        "parent",
        "quiet",
        "sealed",
        "spread",
        "step",
        "straight",
        "tap",
    )

    def __init__(self, site: Site, previous: Position | None, parent: TrieNode | None, step: Any) -> None:
        super().__init__(site, previous)
        self.parent = parent
        self.step = step  # the key of the edge that leads here
        self.edges: dict[Any, TrieNode] = _NO_EDGES
        # The plain op, the ordinary module and the return that came next lately: passes that run alike find their way
        # by one comparison, without a look into the edges. Each is read at once with what it is compared by, because
        # other threads turn it to where they go.
        self.following: TrieNode = NO_NODE
        self.entered: TrieNode = NO_NODE
        self.left: TrieNode | None = None
        self.module: nn.Module | None = None  # which module enters here
        self.tap: Tap | None = None
        self.spread: bool | None = None  # whether leaves of a nested value have to be looked at; None: not asked yet
        self.leaf_taps: dict[str, Tap | None] | None = None
        self.opens: TrieNode | None = None  # the start of a composite's inside, where something may be kept there
        self.sealed = False  # a module whose inside doesn't count outside
        self.quiet = False  # a module that runs no op, or none but one that is known
        self.straight: TrieNode | None = None  # that op
        self.apart = False  # a module that does not run like others
        self.hidden = False  # a module that runs without the mode, as one event
        self.depth = 0  # how many frames are open after this event
        self.known: TrackedModule | None = None
        self.facts: OpFacts | None = None

    def put(self, step: Any, node: TrieNode) -> None:
        """Add an edge."""
        if self.edges is _NO_EDGES:
            self.edges = {}
        self.edges[step] = node


_NO_EDGES: dict[Any, TrieNode] = {}  # shared by all nodes without edges, never written to

NO_NODE = TrieNode.__new__(TrieNode)
"""Where nothing has led yet."""

NO_NODE.step = object()

NO_NODE.module = nn.Module()


class _OpenFrame:
    """A frame of calls that is open at a node, with what has been counted in it."""

    __slots__ = ("calls", "counts", "frame", "modules", "number", "numbers", "previous", "prefix", "start", "totals")

    def __init__(self, frame: Frame | None, prefix: str, number: int) -> None:
        self.frame = frame
        self.prefix = prefix
        self.number = number
        self.counts: dict[str, int] = {}
        self.modules: tuple[tuple[Frame, ...], tuple[int, ...]] | None = None
        # Only a frame whose inside doesn't count outside (a composite, a sealed module) fills these:
        self.numbers: dict[str, int] | None = None
        self.totals: tuple[int, int] = (0, 0)
        self.start = ""
        self.previous: Position | None = None
        self.calls: dict[str, int] = {}


class PassCounters:
    """What has been counted in a pass up to a node; only needed where the trie grows."""

    def __init__(self, prefix: str) -> None:
        self.numbers: dict[str, int] = {}
        self.ops = 0
        self.events = 0
        self.calls: dict[str, int] = {}
        self.frames = [_OpenFrame(None, prefix, 1)]
        self.label_prefix = ""
        self.last: Position | None = None

    @classmethod
    def at(cls, node: TrieNode) -> PassCounters:
        """The tally at a node, by walking the path that leads there."""
        path = []
        walk = node
        while walk.parent is not None:
            path.append(walk)
            walk = walk.parent
        tally = cls(walk.site.name)
        for step in reversed(path):
            tally.advance(step)
        return tally

    def _module_frames(self) -> tuple[tuple[Frame, ...], tuple[int, ...], int]:
        """The modules around, and which calls of them; worked out once per innermost frame."""
        innermost = self.frames[-1]
        if innermost.modules is None:
            frames = [(o.frame, o.number) for o in self.frames if o.frame is not None]
            innermost.modules = tuple([f for f, _ in frames]), tuple([n for _, n in frames])
        frames_around, numbers = innermost.modules
        return frames_around, numbers, numbers[-1] if numbers else 1

    def _op_name(self, facts: OpFacts) -> str:
        frame = self.frames[-1]
        count = frame.counts.get(facts.segment, 0) + 1
        return f"{frame.prefix}/{facts.segment}" + (f"_{count}" if count > 1 else "")

    def upcoming(self, facts: OpFacts) -> tuple[str, str]:
        """The label and the site of an op that may return next."""
        kind = facts.layer_type
        return f"{self.label_prefix}{kind}_{self.numbers.get(kind, 0) + 1}", self._op_name(facts)

    def count(self, facts: OpFacts) -> None:
        """Count an op that has no node."""
        kind, segment = facts.layer_type, facts.segment
        self.numbers[kind] = self.numbers.get(kind, 0) + 1
        counts = self.frames[-1].counts
        counts[segment] = counts.get(segment, 0) + 1
        self.ops += 1
        self.events += 1

    def _node(self, site: Site, parent: TrieNode, step: Any, stack: tuple[int, ...], module_pass: int) -> TrieNode:
        node = TrieNode(site, self.last, parent, step)
        node.stack_passes = stack
        node.module_pass = module_pass
        node.depth = len(self.frames)
        node.event_index = self.events
        return node

    def op(self, facts: OpFacts, parent: TrieNode, step: Any) -> TrieNode:
        """The node of an op that returns now."""
        frames, stack, module_pass = self._module_frames()
        name = self._op_name(facts)
        site = Site(name, "op", facts.layer_type, facts.func_name, frames, None, "", not facts.composite)
        node = self._node(site, parent, step, stack, module_pass)
        node.facts = facts
        node.number = self.numbers.get(facts.layer_type, 0) + 1
        node.label = f"{self.label_prefix}{facts.layer_type}_{node.number}"
        node.op_index = self.ops
        return node

    def enter(self, known: TrackedModule, parent: TrieNode, sealed: bool) -> TrieNode:
        """The node of a module that is entered."""
        frames, stack, _ = self._module_frames()
        number = self.calls.get(known.address, 0) + 1
        site = Site(
            known.input_prefix,
            "module_enter",
            known.layer_type,
            known.frame.module_type,
            (*frames, known.frame),
        )
        node = self._node(site, parent, known, (*stack, number), number)
        node.known = known
        node.sealed = sealed
        node.number = number
        node.depth += 1
        node.label = f"{site.name}:{number}"
        return node

    def leave(self, known: TrackedModule, parent: TrieNode, entered: TrieNode) -> TrieNode:
        """The node of a module that returns; its frame is still on the stack in the event's context."""
        site = entered.site
        site = Site(known.name, "module_exit", site.layer_type, site.func_name, site.frames)
        node = self._node(site, parent, LEAVE, entered.stack_passes, entered.module_pass)
        if entered.sealed:
            frame = self.frames[-1]
            node.previous, node.event_index = frame.previous, frame.totals[1]
        node.known = known
        node.number = entered.number
        node.depth = entered.depth - 1
        node.label = f"{site.name}:{node.number}"
        return node

    def source(self, step: SourceStep, name: str, func_name: str, parent: TrieNode) -> TrieNode:
        """The node of an input or a buffer that is read."""
        frames, stack, module_pass = self._module_frames()
        site = Site(name, step.kind, step.kind, func_name, frames, None, step.path)
        node = self._node(site, parent, step, stack, module_pass)
        node.number = self.numbers.get(step.kind, 0) + 1
        node.label = f"{self.label_prefix}{step.kind}_{node.number}"
        return node

    def inside(self, parent: TrieNode, facts: OpFacts) -> TrieNode:
        """The start of a composite's inside; no event of its own."""
        frames, stack, module_pass = self._module_frames()
        site = Site(self._op_name(facts), "op", facts.layer_type, facts.func_name, frames, None, "", False)
        node = self._node(site, parent, INSIDE, stack, module_pass)
        node.facts = facts
        node.depth += 1
        node.label = f"{self.label_prefix}{facts.layer_type}_{self.numbers.get(facts.layer_type, 0) + 1}/"
        return node

    def raised(self, parent: TrieNode, step: RaisedStep) -> TrieNode:
        """The node after an exception that left all frames down to a depth; no event."""
        node = self._node(parent.site, parent, step, (), 1)
        node.depth = step.depth
        return node

    def advance(self, node: TrieNode) -> None:
        """Count the event of a node."""
        step = node.step
        if isinstance(step, RaisedStep):
            self.close_to(step.depth)
        elif step is INSIDE:
            frame = _OpenFrame(None, node.site.name, 1)
            self._seal(frame, node.label)
            self.frames.append(frame)
        elif node.site.kind == "module_enter":
            self.entered(node)
        elif node.site.kind == "module_exit":
            self._close()
            self.last = node
            self.events += 1
        else:
            facts = node.facts
            kind = facts.layer_type if facts else node.site.kind
            self.numbers[kind] = node.number
            if facts is not None:
                counts = self.frames[-1].counts
                counts[facts.segment] = counts.get(facts.segment, 0) + 1
                self.ops += 1
            self.last = node
            self.events += 1

    def entered(self, node: TrieNode) -> None:
        """Count the call of a module."""
        self.last = node
        self.events += 1
        known = node.known
        assert known is not None
        self.calls[known.address] = node.number
        frame = _OpenFrame(known.frame, known.address, node.number)
        frame.modules = node.site.frames, node.stack_passes
        if node.sealed:
            self._seal(frame, f"{node.label}/")
        self.frames.append(frame)

    def left(self) -> None:
        """Count the return of a module that has no node."""
        self._close()
        self.events += 1

    def _seal(self, frame: _OpenFrame, label_prefix: str) -> None:
        frame.numbers, self.numbers = self.numbers, {}
        frame.totals, self.ops = (self.ops, self.events), 0
        frame.start, self.label_prefix = self.label_prefix, label_prefix
        frame.previous = self.last
        frame.calls, self.calls = self.calls, dict(self.calls)

    def close_to(self, depth: int) -> None:
        """Close the frames that are open above a depth."""
        while len(self.frames) > depth:
            self._close()

    def _close(self) -> None:
        frame = self.frames.pop()
        if frame.numbers is not None:
            self.numbers = frame.numbers
            self.ops, self.events = frame.totals
            self.label_prefix = frame.start
            self.last = frame.previous
            self.calls = frame.calls
