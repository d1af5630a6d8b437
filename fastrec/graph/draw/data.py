"""A drawing as the data of a page: columns of numbers, with each text once.

    data = page_data(history)
    json.dumps(data)

    {"v": 1, "title": .., "caption": [..], "about": {ops, bytes, params, seed, seconds, torch, validated, model},
     "options": {..},              the options of the drawing
     "strings": [..],              all texts; the first one is empty
     "looks": [..],                the styles that occur: shape, fill, fill_end, line, font, dashed
     "ops": {..},                  a column each, with an entry for each node, in the order in which they ran
     "edges": {..}, "modules": {..}, "folds": {..}, "conditions": [..], "marks": {..} or None}

| ops | |
|---|---|
| id | unique, as in all pictures (a string's index) |
| lines | the text on the node: indices of strings |
| look | index of its style |
| kind | 0 op, 1 input, 2 output, 3 buffer, 4 orphan, 5 failed |
| module | the innermost module, -1 for none; where that is single, this node stands for it |
| label, layer, type, fn, site, shape, dtype, params, args, line | strings: ``layer`` is the label less the pass |
| pass, bytes, us | numbers: the pass of its layer, the size of its value, the microseconds that its call took |

| edges | |
|---|---|
| from, to | ops by index |
| head, tail | strings: what is written at the ends, several of them with a line break between |
| kind | 0 solid, 1 dashed, 2 backward |

| modules | |
|---|---|
| id, address, class | strings |
| parent, pass, passes | a module stands behind its parent; ``pass`` is 0 where it stands for all |
| title, lines, look | the text when it is open, the text and style when it is closed |
| single | 1 where it holds one node and nothing else: it is never drawn, its node is |

| folds | |
|---|---|
| id, parent, period, count | ``count`` repetitions of ``period`` modules |
| modules | the modules of all repetitions, in order |
| lines, title, look | the text and style when it is closed, the text on the frame when it is open |

| marks | what a preview says, None without one |
|---|---|
| ops, modules | for each the verdict: 0 none, 1 kept, 2 rejected, 3 unreachable, 4 failed |
| ops_bytes, modules_bytes | what is kept there in a pass |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec

from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.parts import Mark
from fastrec.graph.draw.rules import Style
from fastrec.graph.draw.view import box_lines, box_title, fold_lines, fold_style, fold_title

VERSION = 1
KINDS = ("op", "input", "output", "buffer", "orphan", "failed")
VERDICTS = ("", "kept", "rejected", "unreachable", "failed")
TEXTS = ("label", "layer", "type", "fn", "site", "shape", "dtype", "params", "args", "line")
NUMBERS = ("pass", "bytes", "us")


class Drawn(Protocol):
    """What describes its drawing: a history, a preview."""

    def drawing(self, **options: Any) -> Drawing:
        """The description."""


def page_data(source: Drawing | Drawn, **options: Any) -> dict[str, Any]:
    """The data of a page, of a drawing or of what describes one.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> data = page_data(log_forward_pass(torch.nn.Linear(4, 2), torch.ones(1, 4)))
    >>> [data["strings"][index] for index in data["ops"]["label"]]
    ['input_1', 'linear_1_1', 'output_1']

    Arguments:
        options: those of a drawing, with a history.
    """
    drawing = source if isinstance(source, Drawing) else source.drawing(**options)
    return _Columns(drawing).data()


class _Interned:
    """Things by number, each once."""

    def __init__(self, *first: Any) -> None:
        self._numbers: dict[Any, int] = {thing: number for number, thing in enumerate(first)}

    def __call__(self, thing: Any) -> int:
        return self._numbers.setdefault(thing, len(self._numbers))

    def all(self) -> list[Any]:
        return list(self._numbers)


class _Columns:
    def __init__(self, drawing: Drawing) -> None:
        self._drawing = drawing
        self._string = _Interned("")
        self._look = _Interned()

    def data(self) -> dict[str, Any]:
        drawing = self._drawing
        columns = {
            "ops": self._ops(),
            "edges": self._edges(),
            "modules": self._modules(),
            "folds": self._folds(),
        }
        looks: list[Style] = self._look.all()
        return {
            "v": VERSION,
            "title": drawing.title,
            "caption": list(drawing.caption),
            "about": dict(drawing.facts.about()),
            "options": msgspec.structs.asdict(drawing.options),
            "strings": self._string.all(),
            "looks": [msgspec.structs.asdict(look) for look in looks],
            **columns,
            "conditions": [dict(condition) for condition in drawing.facts.conditions()],
            "marks": self._marks(),
        }

    def _texts(self, texts: Iterable[str]) -> list[int]:
        return [self._string(text) for text in texts]

    def _ops(self) -> dict[str, list[Any]]:
        nodes, facts = self._drawing.nodes, self._drawing.facts.columns()
        return {
            "id": self._texts(node.id for node in nodes),
            "lines": [self._texts(node.lines) for node in nodes],
            "look": [self._look(node.style) for node in nodes],
            "kind": [KINDS.index(node.kind) for node in nodes],
            "module": [node.box for node in nodes],
            **{name: self._texts(facts[name]) for name in TEXTS if name in facts},
            **{name: list(facts[name]) for name in NUMBERS if name in facts},
        }

    def _edges(self) -> dict[str, list[int]]:
        edges = self._drawing.edges
        return {
            "from": [edge.source for edge in edges],
            "to": [edge.target for edge in edges],
            "head": self._texts("\n".join(edge.head) for edge in edges),
            "tail": self._texts("\n".join(edge.tail) for edge in edges),
            "kind": [2 if edge.kind == "backward" else int(edge.dashed) for edge in edges],
        }

    def _modules(self) -> dict[str, list[Any]]:
        boxes = self._drawing.boxes
        return {
            "id": self._texts(box.id for box in boxes),
            "address": self._texts(box.address for box in boxes),
            "class": self._texts(box.module_type for box in boxes),
            "parent": [box.parent for box in boxes],
            "pass": [box.number for box in boxes],
            "passes": [box.passes for box in boxes],
            "title": [self._texts(box_title(box)) for box in boxes],
            "lines": [self._texts(box_lines(box)) for box in boxes],
            "look": [self._look(box.style) for box in boxes],
            "single": [int(box.is_single) for box in boxes],
        }

    def _folds(self) -> dict[str, list[Any]]:
        drawing, folds = self._drawing, self._drawing.folds
        return {
            "id": self._texts(fold.id for fold in folds),
            "parent": [fold.parent for fold in folds],
            "period": [fold.period for fold in folds],
            "count": [fold.count for fold in folds],
            "modules": [list(fold.boxes) for fold in folds],
            "title": [self._texts(fold_title(fold, drawing)) for fold in folds],
            "lines": [self._texts(fold_lines(fold, drawing)) for fold in folds],
            "look": [self._look(fold_style(fold, drawing)) for fold in folds],
        }

    def _marks(self) -> dict[str, list[int]] | None:
        nodes = [node.mark for node in self._drawing.nodes]
        boxes = [box.mark for box in self._drawing.boxes]
        if not any(nodes) and not any(boxes):
            return None
        return {
            "ops": _verdicts(nodes),
            "modules": _verdicts(boxes),
            "ops_bytes": _sizes(nodes),
            "modules_bytes": _sizes(boxes),
        }


def _verdicts(marks: Sequence[Mark | None]) -> list[int]:
    return [VERDICTS.index(mark.verdict) if mark is not None else 0 for mark in marks]


def _sizes(marks: Sequence[Mark | None]) -> list[int]:
    return [mark.nbytes if mark is not None else 0 for mark in marks]
