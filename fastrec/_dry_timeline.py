"""The pass of a dry run as a picture: modules as bars, what is kept coloured; plain SVG without any script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from fastrec._dry_decisions import Outcome
from fastrec._dry_events import Event
from fastrec._dry_sites import segments
from fastrec._failures import PredicateFailure
from fastrec._recording_sites import told_bytes

WIDTH = 960
ROW = 18
LEAST_WIDTH = 0.75

_KEPT, _FAILED, _OTHER, _MODULE, _INK = "#d1495b", "#7b2d8b", "#b8c4cf", "#e9eef2", "#22303c"


class Bar(NamedTuple):
    """A stretch of time in one row: a module's call, or an event."""

    start: float
    stop: float
    depth: int
    colour: str
    text: str
    tip: str


def timeline(title: str, events: Sequence[Event], outcomes: Sequence[Outcome]) -> str:
    """One picture for each pass, below each other."""
    pictures = []
    for index in dict.fromkeys(event.info.index for event in events):
        chosen = [(e, o) for e, o in zip(events, outcomes, strict=True) if e.info.index == index]
        pictures.append(_picture([*_module_bars([e for e, _ in chosen]), *_event_bars(chosen)]))
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
    running: list[tuple[tuple[str, int], float, str]] = []
    last = 0.0
    for event in events:
        frames, numbers = event.site.frames, event.variant.stack_passes
        stack = [(frame.module_address, number) for frame, number in zip(frames, numbers, strict=True)]
        shared = 0
        while shared < min(len(stack), len(running)) and running[shared][0] == stack[shared]:
            shared += 1
        while len(running) > shared:
            yield _module_bar(*running.pop(), last, len(running))
        # The value of an event is there when it ends; a module began before its first event, unless it is that event.
        start = event.time if event.site.kind == "module_enter" else last
        for key, frame in zip(stack[shared:], frames[shared:], strict=True):
            running.append((key, start, frame.module_type))
        last = event.time
    while running:
        yield _module_bar(*running.pop(), last, len(running))


def _module_bar(key: tuple[str, int], start: float, module_type: str, stop: float, depth: int) -> Bar:
    address, number = key
    name = f"{address}: {module_type}" if address else module_type
    call = f", call {number}" if number > 1 else ""
    return Bar(start, stop, depth, _MODULE, name, f"{name}{call}, {_told_time(stop - start)}")


def _event_bars(chosen: Sequence[tuple[Event, Outcome]]) -> Iterator[Bar]:
    last = 0.0
    starts: dict[str, float] = {}
    for event, outcome in chosen:
        site, label = event.site, event.variant.label
        around = label.removesuffix(site.output_address).rpartition("/")[0]
        while around:
            starts.setdefault(around, last)
            around = around.rpartition("/")[0]
        start = starts.get(label.removesuffix(site.output_address), last)
        last = event.time
        if site.kind not in ("module_enter", "module_exit"):
            depth = len(site.frames) + len(segments(site)) - 1
            yield Bar(start, event.time, depth, _colour(outcome), label, _tip(event, outcome))
        elif outcome.decision is not None:  # else the bar of the module says it all
            yield Bar(event.time, event.time, len(site.frames) - 1, _colour(outcome), label, _tip(event, outcome))


def _colour(outcome: Outcome) -> str:
    if isinstance(outcome.decision, PredicateFailure):
        return _FAILED
    return _OTHER if outcome.decision is None else _KEPT


def _tip(event: Event, outcome: Outcome) -> str:
    site, variant, decision = event.site, event.variant, outcome.decision
    shape = "x".join(map(str, variant.shape)) or "scalar"
    tip = f"{variant.label} ({site.name}), {site.kind}, {shape} {variant.dtype}, {told_bytes(event.nbytes)}"
    if isinstance(decision, PredicateFailure):
        return f"{tip}\n{decision.error}"
    return tip if decision is None else f"{tip}\nkept: {told_bytes(outcome.nbytes)}, {decision!r}"


def _picture(bars: Sequence[Bar]) -> str:
    if not bars:
        return ""
    end = max(bar.stop for bar in bars) or 1.0
    height = ROW * (1 + max(bar.depth for bar in bars))
    shapes = "".join(_shape(bar, WIDTH / end) for bar in bars)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height + ROW}" '
        f'font-family="sans-serif" font-size="10">{shapes}'
        f'<text x="0" y="{height + 13}" fill="{_INK}">0</text>'
        f'<text x="{WIDTH}" y="{height + 13}" fill="{_INK}" text-anchor="end">{escape(_told_time(end))}</text></svg>'
    )


def _shape(bar: Bar, scale: float) -> str:
    width = max((bar.stop - bar.start) * scale, LEAST_WIDTH)
    x = min(bar.start * scale, WIDTH - width)
    y = bar.depth * ROW
    fits = len(bar.text) * 6 < width
    text = f'<text x="{x + 3:.2f}" y="{y + 12}" fill="{_INK}">{escape(bar.text)}</text>' if fits else ""
    return (
        f'<g><title>{escape(bar.tip)}</title><rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW - 2}" '
        f'fill="{bar.colour}" stroke="#ffffff" stroke-width="0.3"/>{text}</g>'
    )


def _told_time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
