"""The pass of a dry run as a picture: modules as bars, what is kept coloured; plain SVG without any script.

Every event is as wide as any other: it is a first pass, in which what is slow is mostly what runs for the first time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from fastrec._dry_decisions import Outcome
from fastrec._dry_events import Event
from fastrec._dry_sites import segments
from fastrec.recording._records import told_bytes
from fastrec.session.failures import PredicateFailure

WIDTH = 960
NARROWEST, WIDEST = 4, 48
ROW = 18
LETTER = 6

_KEPT, _FAILED, _OTHER, _MODULE, _INK = "#d1495b", "#7b2d8b", "#b8c4cf", "#e9eef2", "#22303c"


class Bar(NamedTuple):
    """What fills one row from one event to another: a module's call, or an event."""

    start: int
    stop: int
    depth: int
    colour: str
    text: str
    tip: str


def timeline(title: str, events: Sequence[Event], outcomes: Sequence[Outcome]) -> str:
    """One picture for each pass, below each other."""
    pictures = []
    for index in dict.fromkeys(event.info.index for event in events):
        chosen = [(e, o) for e, o in zip(events, outcomes, strict=True) if e.info.index == index]
        pictures.append(_picture([*_module_bars([e for e, _ in chosen]), *_event_bars(chosen)], len(chosen)))
    legend = "".join(
        f'<span style="color:{colour}">&#9632;</span> {name} '
        for colour, name in ((_KEPT, "kept"), (_FAILED, "error"), (_OTHER, "not kept"), (_MODULE, "module"))
    )
    return (
        f'<div style="font:12px sans-serif"><div>{escape(title)}</div><div>{legend}</div>'
        f'<div style="overflow-x:auto">{"".join(pictures)}</div></div>'
    )


def _module_bars(events: Sequence[Event]) -> Iterator[Bar]:
    """The calls of modules, read from the stacks of the events in them."""
    running: list[tuple[tuple[str, int], int, str]] = []
    for column, event in enumerate(events):
        frames, numbers = event.site.frames, event.variant.stack_passes
        stack = [(frame.module_address, number) for frame, number in zip(frames, numbers, strict=True)]
        shared = 0
        while shared < min(len(stack), len(running)) and running[shared][0] == stack[shared]:
            shared += 1
        while len(running) > shared:
            yield _module_bar(*running.pop(), column, len(running))
        for key, frame in zip(stack[shared:], frames[shared:], strict=True):
            running.append((key, column, frame.module_type))
    while running:
        yield _module_bar(*running.pop(), len(events), len(running))


def _module_bar(key: tuple[str, int], start: int, module_type: str, stop: int, depth: int) -> Bar:
    address, number = key
    name = f"{address}: {module_type}" if address else module_type
    tip = f"{name}, call {number}" if number > 1 else name
    return Bar(start, stop, depth, _MODULE, name.rpartition(".")[2], tip)


def _event_bars(chosen: Sequence[tuple[Event, Outcome]]) -> Iterator[Bar]:
    inside: dict[str, int] = {}
    for column, (event, outcome) in enumerate(chosen):
        site, label = event.site, event.variant.label
        own = label.removesuffix(site.output_address)
        around = own.rpartition("/")[0]
        while around:
            inside.setdefault(around, column)
            around = around.rpartition("/")[0]
        # A composite returns after what is inside of it, and spans that.
        start = inside.get(own, column)
        if site.kind not in ("module_enter", "module_exit"):
            path = segments(site)
            depth = len(site.frames) + len(path) - 1
            yield Bar(start, column + 1, depth, _colour(outcome), path[-1], _tip(event, outcome))
        elif outcome.decision is not None:  # else the bar of the module says it all
            yield Bar(column, column + 1, len(site.frames) - 1, _colour(outcome), "", _tip(event, outcome))


def _colour(outcome: Outcome) -> str:
    if isinstance(outcome.decision, PredicateFailure):
        return _FAILED
    return _OTHER if outcome.decision is None else _KEPT


def _tip(event: Event, outcome: Outcome) -> str:
    site, variant, decision = event.site, event.variant, outcome.decision
    shape = "x".join(map(str, variant.shape)) or "scalar"
    tip = (
        f"{variant.label} ({site.name}), {site.kind}, {shape} {variant.dtype}, {told_bytes(event.nbytes)}, "
        f"after {event.time * 1e3:.2f} ms"
    )
    if isinstance(decision, PredicateFailure):
        return f"{tip}\n{decision.error}"
    return tip if decision is None else f"{tip}\nkept: {told_bytes(outcome.nbytes)}, {decision!r}"


def _picture(bars: Sequence[Bar], columns: int) -> str:
    scale = max(NARROWEST, min(WIDEST, WIDTH / columns))
    height = ROW * (1 + max(bar.depth for bar in bars))
    shapes = "".join(_shape(bar, scale) for bar in bars)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{columns * scale:.0f}" height="{height}" '
        f'font-family="sans-serif" font-size="10">{shapes}</svg>'
    )


def _shape(bar: Bar, scale: float) -> str:
    width = (bar.stop - bar.start) * scale
    x, y = bar.start * scale, bar.depth * ROW
    letters = int((width - 4) / LETTER)
    text = bar.text[:letters] if letters > 2 else ""
    written = f'<text x="{x + 3:.1f}" y="{y + 12}" fill="{_INK}">{escape(text)}</text>' if text else ""
    return (
        f'<g><title>{escape(bar.tip)}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 2}" '
        f'fill="{bar.colour}" stroke="#ffffff" stroke-width="0.5"/>{written}</g>'
    )
