"""How an operation hangs together with others."""

from __future__ import annotations

from collections.abc import Iterable

from fastrec.graph._operation_base import Facts
from fastrec.graph._raw import Op
from fastrec.graph._structure import ancestors, descendants


class RelationFacts(Facts):
    """Parents, children, ends and conditions; lists of labels are in execution order."""

    __slots__ = ()

    def _where(self, indices: Iterable[int], kind: str) -> list[str]:
        ops = self._graph.ops
        return self._labels(i for i in sorted(indices) if ops[i].kind == kind)

    @property
    def same_layer_operations(self) -> list[str]:
        """All passes of its layer, with their numbers, itself included."""
        return list(self._graph.passes[self._layer.label])

    @property
    def parent_layers(self) -> list[str]:
        """The operations whose values it read, in the order of its arguments."""
        return self._labels(self.raw.parents)

    @property
    def orig_ancestors(self) -> list[str]:
        """Its ancestors that have no parents."""
        ops = self._graph.ops
        return self._labels(i for i in sorted(ancestors(ops, self.index)) if not ops[i].parents)

    @property
    def child_layers(self) -> list[str]:
        """The operations that read its value."""
        return self._labels(self._children)

    @property
    def _children(self) -> list[int]:
        return self._graph.children.get(self.index, [])

    @property
    def sibling_layers(self) -> list[str]:
        """Other operations that share a parent with it."""
        children = self._graph.children
        return self._labels(sorted({c for parent in self.raw.parents for c in children[parent]} - {self.index}))

    @property
    def spouse_layers(self) -> list[str]:
        """Other operations that share a child with it."""
        ops = self._graph.ops
        return self._labels(sorted({p for child in self._children for p in ops[child].parents} - {self.index}))

    @property
    def is_input_layer(self) -> bool:
        """Whether it is an input of the model."""
        return self.raw.kind == "input"

    @property
    def has_input_ancestor(self) -> bool:
        """Whether it is computed from an input, or is one."""
        return bool(self._graph.from_input[self.index])

    @property
    def min_distance_from_input(self) -> int | None:
        """The least number of steps from an input to it, None where it does not come from one."""
        return self._graph.distances_from_input.least[self.index]

    @property
    def max_distance_from_input(self) -> int | None:
        """The largest number of steps from an input to it, None where it does not come from one."""
        return self._graph.distances_from_input.most[self.index]

    @property
    def is_output_layer(self) -> bool:
        """Whether it is an output of the model."""
        return self.raw.kind == "output"

    @property
    def is_output_ancestor(self) -> bool:
        """Whether an output is computed from it, or it is one."""
        return bool(self._graph.to_output[self.index])

    @property
    def output_descendents(self) -> list[str]:
        """The outputs that are computed from it."""
        return self._where(descendants(self._graph.children, self.index), "output")

    @property
    def min_distance_from_output(self) -> int | None:
        """The least number of steps from it to an output, None where it leads to none."""
        return self._graph.distances_from_output.least[self.index]

    @property
    def max_distance_from_output(self) -> int | None:
        """The largest number of steps from it to an output, None where it leads to none."""
        return self._graph.distances_from_output.most[self.index]

    @property
    def is_buffer_layer(self) -> bool:
        """Whether it is a buffer of the model that was read."""
        return self.raw.kind == "buffer"

    @property
    def buffer_address(self) -> str | None:
        """The address of that buffer, None for anything else."""
        return self.raw.address if self.raw.kind == "buffer" else None

    @property
    def initialized_inside_model(self) -> bool:
        """Whether it is an operation without parents, such as ``torch.rand``."""
        return _is_initialized_inside(self.raw)

    @property
    def internally_initialized_parents(self) -> list[str]:
        """Those of its parents that are initialized inside of the model."""
        ops = self._graph.ops
        return self._labels(parent for parent in self.raw.parents if _is_initialized_inside(ops[parent]))

    @property
    def internally_initialized_ancestors(self) -> list[str]:
        """Those of its ancestors that are initialized inside of the model."""
        ops = self._graph.ops
        return self._labels(i for i in sorted(ancestors(ops, self.index)) if _is_initialized_inside(ops[i]))

    @property
    def terminated_inside_model(self) -> bool:
        """Whether nothing reads its value, and it is no output."""
        return not self._children and self.raw.kind != "output"

    @property
    def is_terminal_bool_layer(self) -> bool:
        """Whether it is a single boolean that no operation reads, as a condition is."""
        return self.index in self.history.conditions.terminal_bools

    @property
    def in_cond_branch(self) -> bool:
        """Whether it takes part in evaluating a condition, and in nothing else."""
        return self.index in self.history.conditions.evaluating

    @property
    def is_cond_branch_start(self) -> bool:
        """Whether the evaluation of a condition begins with it."""
        return self.index in self.history.conditions.starts

    @property
    def cond_branch_start_children(self) -> list[str]:
        """Those of its children with which the evaluation of a condition begins."""
        return self._labels(c for c in self._children if c in self.history.conditions.starts)

    @property
    def conditional_branches(self) -> list[tuple[str, str]]:
        """The branches that it ran in, outermost first: what was tested, and ``"then"`` or ``"else"``."""
        conditions = self.history.conditions
        return [(conditions[number].layer_label, branch) for number, branch in conditions.branches.get(self.index, ())]


def _is_initialized_inside(op: Op) -> bool:
    return op.kind == "op" and not op.parents
