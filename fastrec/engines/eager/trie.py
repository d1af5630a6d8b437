"""Passes as paths in a trie, so that what an event is called is worked out once and found again by one comparison.

    root ── Linear entered ── linear ── Linear returned ── relu ── ...     a pass that takes the branch
                                                        └─ tanh ── ...     and one that does not

A node is an event after a certain sequence of events. What only depends on that sequence is stored in it: site, label,
indices, history, and the tap that the listener gave for it. A pass that runs as an earlier one did walks existing
nodes: at each event it looks at the edge that was taken last, and only if that is another one it looks into ``edges``.
Nothing is counted, nothing is named, no predicate is asked.

Where a pass leaves the known paths, ``PassCounters`` works out what is new. It counts what happened on the way to a
node, by walking up to the root if it does not stand there already; so passes that find their way never count at all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from fastrec.engines._protocol import Tap
from fastrec.engines.eager.modules import TrackedModule
from fastrec.events.position import Position
from fastrec.events.sites import Frame, Kind, Site
from fastrec.ops.facts import OpFacts

# --- Nodes and the edges between them -------------------------------------------------------------------------------

LEAVE = "leave"
"""The edge that leaves the innermost module."""

INSIDE = "inside"
"""The edge into a composite; no lookup goes through it."""


class RaisedStep(NamedTuple):
    """The edge out of all frames down to a depth, after an exception that the user's code caught."""

    depth: int


class SourceStep(NamedTuple):
    """The edge of an input or a buffer that is read."""

    kind: Kind
    path: str


class TrieNode(Position):
    """One event after a certain sequence of events in its pass.

    ``step`` is the key of the edge that leads here from ``parent``: a function, a tracked module (with whether its
    fused path may be taken, where it has one), or one of the steps above.

    ``next_op``, ``next_module`` and ``next_return`` are where passes went from here lately: passes that run alike find
    their way by one comparison. Other threads may turn them to another node at any time, so each is read into a local
    variable once and compared by what stands in the node itself.
    """

    __slots__ = (
        *("parent", "step", "edges", "depth", "facts", "tracked"),
        *("next_op", "next_module", "next_return", "module"),
        *("tap", "has_kept_leaves", "leaf_taps", "inside", "is_searched"),
        *("own_numbering", "runs_no_ops", "only_op", "is_special", "is_opaque", "is_compared"),
    )

    def __init__(self, site: Site, previous: Position | None, parent: TrieNode | None, step: Any) -> None:
        super().__init__(site, previous)
        self.parent = parent
        self.step = step
        self.edges: dict[Any, TrieNode] = _NO_EDGES
        self.depth = 0  # how many frames are open after this event
        self.facts: OpFacts | None = None  # of an op
        self.tracked: TrackedModule | None = None  # that is entered or left here
        self.next_op: TrieNode = NO_NODE
        self.next_module: TrieNode = NO_NODE
        self.next_return: TrieNode | None = None
        self.module: nn.Module | None = None  # the one that entered here last
        # What is kept of the value:
        self.tap: Tap[Any] | None = None
        self.has_kept_leaves: bool | None = None  # whether leaves of a nested value may be kept; None: not asked yet
        self.leaf_taps: dict[str, Tap[Any] | None] | None = None
        self.is_searched = False  # for objects whose tensors can't be read
        self.inside: TrieNode | None = None  # the start of a composite's inside, if something may be kept there
        # How a module runs that is entered here:
        self.own_numbering = False  # what runs inside does not count outside
        self.runs_no_ops = False  # the mode has nothing to see inside, except perhaps ...
        self.only_op: TrieNode | None = None  # ... this op, whose value the module returns
        self.is_special = False  # it can't be called as most modules are
        self.is_opaque = False  # it runs without the mode, as one event
        self.is_compared = False  # it runs once more, with its fused kernel, to see that nothing else comes out

    def add_edge(self, step: Any, node: TrieNode) -> None:
        if self.edges is _NO_EDGES:
            self.edges = {}
        self.edges[step] = node


_NO_EDGES: dict[Any, TrieNode] = {}  # shared by all nodes without edges, never written to

# Where no pass went yet. It compares unequal to everything, so that the hot path needs no test for None.
NO_NODE = TrieNode.__new__(TrieNode)
NO_NODE.step = object()
NO_NODE.module = nn.Module()


class Trie:
    """The paths of all passes of one engine: those of calls begin at ``root``, each region has a root of its own."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start afresh."""
        self.size = 0
        self.root = _root("")
        self._regions: dict[str, TrieNode] = {}

    def region(self, name: str) -> TrieNode:
        """Where passes of a region begin."""
        if name not in self._regions:
            self._regions[name] = _root(f":{name}")
        return self._regions[name]


def _root(name: str) -> TrieNode:
    return TrieNode(Site(name, "op", "", ""), None, None, None)


# --- Counting where the trie grows ----------------------------------------------------------------------------------


class _Numbering(NamedTuple):
    """What has been counted outside of a frame with a numbering of its own."""

    numbers: dict[str, int]
    calls: dict[str, int]
    ops: int
    events: int
    label_prefix: str
    last_event: Position | None


class _OpenFrame:
    """A module or a composite that has been entered and not left, with what has been counted in it."""

    __slots__ = ("frame", "ordinals", "outside", "pass_number", "prefix", "stack")

    def __init__(self, frame: Frame | None, prefix: str, pass_number: int) -> None:
        self.frame = frame
        self.prefix = prefix
        self.pass_number = pass_number
        self.ordinals: dict[str, int] = {}
        self.stack: tuple[tuple[Frame, ...], tuple[int, ...]] | None = None  # once it has been worked out
        self.outside: _Numbering | None = None  # only where the inside does not count outside


class PassCounters:
    """What has been counted in a pass up to a node, and the new nodes that follow from it."""

    def __init__(self, prefix: str) -> None:
        self.numbers: dict[str, int] = {}  # the last number of each layer type
        self.calls: dict[str, int] = {}  # the last call of each module
        self.ops = 0
        self.events = 0
        self.label_prefix = ""
        self.last_event: Position | None = None
        self.frames = [_OpenFrame(None, prefix, 1)]

    @classmethod
    def at(cls, node: TrieNode) -> PassCounters:
        """What has been counted up to a node, by walking the path that leads there."""
        path = []
        ancestor = node
        while ancestor.parent is not None:
            path.append(ancestor)
            ancestor = ancestor.parent
        counters = cls(ancestor.site.name)
        for event in reversed(path):
            counters.advance(event)
        return counters

    # New nodes.

    def op(self, facts: OpFacts, parent: TrieNode, step: Any) -> TrieNode:
        """The node of an op that returns now."""
        frames, stack, module_pass = self._stack()
        name = self._op_name(facts)
        site = Site(name, "op", facts.layer_type, facts.func_name, frames, None, "", not facts.composite)
        node = self._node(site, parent, step, stack, module_pass)
        node.facts = facts
        node.number = self.numbers.get(facts.layer_type, 0) + 1
        node.label = f"{self.label_prefix}{facts.layer_type}_{node.number}"
        node.op_index = self.ops
        return node

    def inside(self, parent: TrieNode, facts: OpFacts) -> TrieNode:
        """The start of a composite's inside; no event of its own."""
        frames, stack, module_pass = self._stack()
        site = Site(self._op_name(facts), "op", facts.layer_type, facts.func_name, frames, None, "", False)
        node = self._node(site, parent, INSIDE, stack, module_pass)
        node.facts = facts
        node.depth += 1
        node.label = f"{self.label_prefix}{facts.layer_type}_{self.numbers.get(facts.layer_type, 0) + 1}/"
        return node

    def enter(self, tracked: TrackedModule, parent: TrieNode, step: Any, *, own_numbering: bool) -> TrieNode:
        """The node of a module that is entered."""
        frames, stack, _ = self._stack()
        number = self.calls.get(tracked.address, 0) + 1
        frame = tracked.frame
        site = Site(tracked.input_prefix, "module_enter", tracked.layer_type, frame.module_type, (*frames, frame))
        node = self._node(site, parent, step, (*stack, number), number)
        node.tracked = tracked
        node.own_numbering = own_numbering
        node.number = number
        node.depth += 1
        node.label = f"{site.name}:{number}"
        return node

    def leave(self, tracked: TrackedModule, parent: TrieNode, enter_node: TrieNode) -> TrieNode:
        """The node of a module that returns; its frame is still on the stack in the event's context."""
        site = enter_node.site
        site = Site(tracked.name, "module_exit", site.layer_type, site.func_name, site.frames)
        node = self._node(site, parent, LEAVE, enter_node.stack_passes, enter_node.module_pass)
        outside = self.frames[-1].outside
        if outside is not None:
            node.previous, node.event_index = outside.last_event, outside.events
        node.tracked = tracked
        node.number = enter_node.number
        node.depth = enter_node.depth - 1
        node.label = f"{site.name}:{node.number}"
        return node

    def source(self, step: SourceStep, name: str, func_name: str, parent: TrieNode) -> TrieNode:
        """The node of an input or a buffer that is read."""
        frames, stack, module_pass = self._stack()
        site = Site(name, step.kind, step.kind, func_name, frames, None, step.path)
        node = self._node(site, parent, step, stack, module_pass)
        node.number = self.numbers.get(step.kind, 0) + 1
        node.label = f"{self.label_prefix}{step.kind}_{node.number}"
        return node

    def raised(self, parent: TrieNode, step: RaisedStep) -> TrieNode:
        """The node after an exception that left all frames down to a depth; no event."""
        node = self._node(parent.site, parent, step, (), 1)
        node.depth = step.depth
        return node

    def _node(self, site: Site, parent: TrieNode, step: Any, stack: tuple[int, ...], module_pass: int) -> TrieNode:
        node = TrieNode(site, self.last_event, parent, step)
        node.stack_passes = stack
        node.module_pass = module_pass
        node.depth = len(self.frames)
        node.event_index = self.events
        return node

    def _stack(self) -> tuple[tuple[Frame, ...], tuple[int, ...], int]:
        """The modules around, which calls of them, and which call of the innermost one."""
        innermost = self.frames[-1]
        if innermost.stack is None:
            modules = [(opened.frame, opened.pass_number) for opened in self.frames if opened.frame is not None]
            innermost.stack = tuple([frame for frame, _ in modules]), tuple([number for _, number in modules])
        frames, numbers = innermost.stack
        return frames, numbers, numbers[-1] if numbers else 1

    def _op_name(self, facts: OpFacts) -> str:
        innermost = self.frames[-1]
        ordinal = innermost.ordinals.get(facts.segment, 0) + 1
        return f"{innermost.prefix}/{facts.segment}" + (f"_{ordinal}" if ordinal > 1 else "")

    # Counting.

    def advance(self, node: TrieNode) -> None:
        """Count the event of a node."""
        step = node.step
        if isinstance(step, RaisedStep):
            self.close_to(step.depth)
        elif step is INSIDE:
            frame = _OpenFrame(None, node.site.name, 1)
            self._number_anew(frame, node.label)
            self.frames.append(frame)
        elif node.site.kind == "module_enter":
            self.count_entry(node)
        elif node.site.kind == "module_exit":
            self.count_return()
            self.last_event = node
        else:
            facts = node.facts
            if facts is not None:
                self._count_ordinal(facts)
            self.numbers[facts.layer_type if facts else node.site.kind] = node.number
            self.events += 1
            self.last_event = node

    def count_entry(self, node: TrieNode) -> None:
        """Count the call of a module."""
        self.last_event = node
        self.events += 1
        tracked = node.tracked
        assert tracked is not None
        self.calls[tracked.address] = node.number
        frame = _OpenFrame(tracked.frame, tracked.address, node.number)
        frame.stack = node.site.frames, node.stack_passes
        if node.own_numbering:
            self._number_anew(frame, f"{node.label}/")
        self.frames.append(frame)

    def count_return(self) -> None:
        """Count the return of a module."""
        self._close()
        self.events += 1

    def count_op(self, facts: OpFacts) -> None:
        """Count an op that has no node."""
        self.numbers[facts.layer_type] = self.numbers.get(facts.layer_type, 0) + 1
        self._count_ordinal(facts)
        self.events += 1

    def next_names(self, facts: OpFacts) -> tuple[str, str]:
        """The label and the site of an op if it is the next event."""
        number = self.numbers.get(facts.layer_type, 0) + 1
        return f"{self.label_prefix}{facts.layer_type}_{number}", self._op_name(facts)

    def close_to(self, depth: int) -> None:
        """Close the frames that are open above a depth."""
        while len(self.frames) > depth:
            self._close()

    def _count_ordinal(self, facts: OpFacts) -> None:
        ordinals = self.frames[-1].ordinals
        ordinals[facts.segment] = ordinals.get(facts.segment, 0) + 1
        self.ops += 1

    def _number_anew(self, frame: _OpenFrame, label_prefix: str) -> None:
        """Begin a frame whose inside does not count outside; histories and event indices inside go on."""
        frame.outside = _Numbering(self.numbers, self.calls, self.ops, self.events, self.label_prefix, self.last_event)
        self.numbers, self.calls, self.ops, self.label_prefix = {}, dict(self.calls), 0, label_prefix

    def _close(self) -> None:
        outside = self.frames.pop().outside
        if outside is not None:
            self.numbers, self.calls, self.ops, self.events, self.label_prefix, self.last_event = outside
