"""What a page tells of each operation beside its drawing: function, arguments, time, source line."""

from __future__ import annotations

import linecache
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import Any

import torch

from fastrec.graph.call_stack import line_of
from fastrec.graph.draw.parts import Node
from fastrec.graph.draw.text import dimensions
from fastrec.graph.raw import CapturedCall, CapturedOp, ConstantTensor, Overwritten, Parameter, Ref, Stack
from fastrec.graph.structure import Graph

MAX_ARGUMENT = 60
"""Letters of one argument; of longer ones the beginning is shown."""

_TORCH = str(Path(torch.__file__).parent)


class FactMaker:
    """Reads the facts off the graph of a pass, when somebody asks."""

    def __init__(self, graph: Graph, model_name: str, parameters: Sequence[Parameter], nodes: Sequence[Node]) -> None:
        self._graph = graph
        self._model_name = model_name
        self._parameters = parameters
        self._nodes = nodes

    def columns(self) -> Mapping[str, Sequence[Any]]:
        """A column for each fact, with an entry for each node."""
        rows = [self._row(node) for node in self._nodes]
        return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}

    def _row(self, node: Node) -> dict[str, Any]:
        graph = self._graph
        if not node.ops:
            return self._failed_row(node)
        op = graph.ops[node.ops[0]]
        call, is_orphan = op.call, op.index not in graph.positions
        calls = {id(graph.ops[index].call): graph.ops[index].call for index in node.ops}.values()
        return {
            "label": call.label if is_orphan else graph.label(op.index),
            "layer": call.label if is_orphan else graph.layer(op.index).label,
            "pass": 0 if is_orphan else graph.pass_numbers[op.index],
            "type": call.layer_type,
            "fn": call.func_name,
            "site": call.site + (op.path if op.kind == "op" else ""),
            "shape": dimensions(op.shape),
            "dtype": str(op.dtype).removeprefix("torch."),
            "bytes": sum(graph.ops[index].nbytes for index in node.ops),
            "us": round(sum(call.seconds for call in calls) * 1e6, 1),
            "params": parameters_text(op),
            "args": arguments_text(call),
            "line": source_line(call.stack),
        }

    def _failed_row(self, node: Node) -> dict[str, Any]:
        """The facts of what ended the pass, which has no value."""
        failure = self._graph.capture.failure
        call = failure.call if failure is not None and failure.call is not None else CapturedCall(None, "", "", "", "")
        texts = dict.fromkeys(("shape", "dtype", "params", "line"), "")
        names = {"label": node.lines[0], "layer": node.lines[0], "site": call.site}
        function = {"type": call.layer_type, "fn": call.func_name, "args": arguments_text(call)}
        return {**texts, **names, **function, "pass": 0, "bytes": 0, "us": 0.0}

    def about(self) -> Mapping[str, Any]:
        """The pass and the model."""
        graph = self._graph
        return {
            "model": self._model_name,
            "ops": len(graph.order),
            "bytes": sum(graph.ops[index].nbytes for index in graph.order),
            "params": sum(parameter.tensor.numel() for parameter in self._parameters),
            "seed": graph.capture.seed,
            "seconds": round(graph.capture.seconds, 4),
            "torch": torch.__version__,
            "validated": None,
        }

    def conditions(self) -> Sequence[Mapping[str, Any]]:
        """The tests that Python made, with the branch that was taken where that is known."""
        return [
            {
                "label": condition.layer_label,
                "kind": condition.kind,
                "value": str(condition.value),
                "branch": condition.branch,
                "line": f"{_short(condition.file)}:{condition.line}" if condition.file else "",
                "within": list(condition.within),
            }
            for condition in self._graph.conditions
        ]


def parameters_text(op: CapturedOp) -> str:
    """The parameters that an operation uses, by their names in its module: ``weight 64x3x7x7, bias 64``."""
    prefix = f"{op.module.address}." if op.module is not None and op.module.address else ""
    return ", ".join(
        f"{parameter.address.removeprefix(prefix)} {dimensions(tuple(parameter.tensor.shape))}"
        for parameter in op.call.parameters
    )


def arguments_text(call: CapturedCall) -> str:
    """The arguments of a call as people write them; a dot stands for a value of the graph."""
    positional = (_argument(argument) for argument in call.args)
    return ", ".join([*positional, *(f"{name}={_argument(argument)}" for name, argument in call.kwargs.items())])


def _argument(argument: Any) -> str:
    if isinstance(argument, Ref | Overwritten):
        return "·"
    if isinstance(argument, Parameter):
        return argument.address.rpartition(".")[2] or "parameter"
    if isinstance(argument, ConstantTensor):
        return f"tensor {dimensions(argument.shape)}"
    if type(argument) in (tuple, list):
        inside = ", ".join(map(_argument, argument))
        return _cut(f"({inside})" if type(argument) is tuple else f"[{inside}]")
    if isinstance(argument, slice):
        ends = ["" if end is None else _argument(end) for end in (argument.start, argument.stop, argument.step)]
        return ":".join(ends if ends[2] else ends[:2])
    return _cut(str(argument) if isinstance(argument, torch.dtype | torch.device) else repr(argument))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_ARGUMENT else f"{text[: MAX_ARGUMENT - 3]}..."


def source_line(stack: Stack | None) -> str:
    """Where a call stands in the source, and the line itself: the innermost one that is not torch's own."""
    innermost: tuple[CodeType, int] | None = None
    for code, instruction in _frames(stack):
        innermost = innermost or (code, instruction)
        if not code.co_filename.startswith(_TORCH):
            return _line(code, instruction)
    return _line(*innermost) if innermost is not None else ""


def _frames(stack: Stack | None) -> Iterator[tuple[CodeType, int]]:
    while stack is not None:
        yield stack[1], stack[2]
        stack = stack[0]


@lru_cache(maxsize=8192)
def _line(code: CodeType, instruction: int) -> str:
    number = line_of(code, instruction)
    text = linecache.getline(code.co_filename, number).strip()
    return f"{_short(code.co_filename)}:{number}" + (f"  {text}" if text else "")


def _short(file: str) -> str:
    """The end of a path: whole paths tell a reader of the page about the machine that it was made on."""
    return "/".join(Path(file).parts[-3:])
