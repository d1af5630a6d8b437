"""A dry run shown: as a table of its sites, and as a timeline of the pass.

The events of one site are added up in a ``SiteLine``. The table has a row for each, and the tree (tree.py) a branch.
The timeline shows single events, one column each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

from fastrec.dryrun.decisions import FORECAST_PASSES, Decider, Outcome
from fastrec.dryrun.events import Event
from fastrec.events.context import PredicateFailure, format_shape
from fastrec.events.sites import Site
from fastrec.recording._records import format_bytes, format_count


class SiteLine:
    """What happened at one site: how often, with values of which shape, and what is kept of it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.fires = 0
        self.kept = 0
        self.value_bytes = 0
        self.kept_bytes = 0
        self.forecast_bytes = 0
        self.error: str | None = None
        self._values: dict[str, None] = {}
        self._specs: dict[str, None] = {}

    def add(self, event: Event, outcome: Outcome, forecast: int) -> None:
        """Add an event of this site."""
        meta = event.meta
        self.fires += 1
        self.value_bytes += event.nbytes
        self.kept_bytes += outcome.nbytes
        self.forecast_bytes += forecast
        self._values[f"{format_shape(meta.shape)} {meta.dtype}"] = None
        if isinstance(outcome.decision, PredicateFailure):
            self.error = self.error or outcome.decision.error
        elif outcome.decision is not None:
            self.kept += 1
            self._specs[repr(outcome.decision).removeprefix("CaptureSpec(").removesuffix(")")] = None

    @property
    def value(self) -> str:
        """Shape and dtype of its values."""
        first, *more = self._values
        return f"{first} and {len(more)} more" if more else first

    @property
    def verdict(self) -> str:
        """What is kept, or why it can't be; empty where nothing is kept."""
        if self.error is not None:
            return f"✗ {self.error.splitlines()[0]}"
        if not self.kept:
            return ""
        specs = ", ".join(spec for spec in self._specs if spec)
        share = f"{self.kept} of {self.fires}" if self.kept < self.fires else ""
        return "  ".join(filter(None, (f"● {format_bytes(self.kept_bytes)}", share, specs)))


def site_lines(events: Iterable[Event], outcomes: Iterable[Outcome], decider: Decider) -> list[SiteLine]:
    """One line per site, in the order of their first events."""
    lines: dict[Site, SiteLine] = {}
    for event, outcome in zip(events, outcomes, strict=True):
        site = event.site
        line = lines.get(site) or lines.setdefault(site, SiteLine(site))
        line.add(event, outcome, decider.forecast(event, outcome))
    return list(lines.values())


def segments(site: Site) -> list[str]:
    """What a site's name has behind its module's address: the composites around it, outermost first, then its name."""
    if site.kind in ("module_enter", "module_exit"):
        return [f"{'in' if site.kind == 'module_enter' else 'out'}{site.output_address}"]
    if site.kind == "input":
        return [f"{site.name} (input)"]
    if site.kind == "buffer":
        return [site.name.removeprefix(f"{site.module_address}.")]
    path = site.name.removesuffix(site.output_address).removeprefix(site.module_address).removeprefix("/")
    *composites, name = path.split("/")
    return [*composites, name + site.output_address]


def summary(lines: Sequence[SiteLine], halted: Mapping[int, str]) -> str:
    """A table of all sites, and what is kept in all."""
    return "\n".join([*align(summary_rows(lines)), *totals(lines, halted)])


def summary_rows(lines: Sequence[SiteLine]) -> list[tuple[str, ...]]:
    """Heading and rows of the table of sites."""
    head = ("site", "kind", "fires", "value", "bytes per pass", f"kept per {FORECAST_PASSES:,}", "kept")
    rows: list[tuple[str, ...]] = [head]
    rows += [
        (
            line.site.name,
            line.site.kind,
            str(line.fires),
            line.value,
            format_bytes(line.value_bytes),
            format_bytes(line.forecast_bytes) if line.kept or line.forecast_bytes else "",
            line.verdict,
        )
        for line in lines
    ]
    return rows


def align(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows as lines of text with aligned columns; columns without any text are left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column)]
    widths = [max(map(len, column)) for column in columns]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in zip(*columns, strict=True)]


def totals(lines: Sequence[SiteLine], halted: Mapping[int, str]) -> list[str]:
    """What is kept in all, in a few lines of text."""
    kept, fires = sum(line.kept for line in lines), sum(line.fires for line in lines)
    texts = [
        f"{kept} of {format_count(fires, 'event')} kept: "
        f"{format_bytes(sum(line.kept_bytes for line in lines))} per pass, "
        f"{format_bytes(sum(line.forecast_bytes for line in lines))} per {FORECAST_PASSES:,} passes"
    ]
    failed = [line for line in lines if line.error is not None]
    if failed:
        first = failed[0]
        texts.append(f"errors at {format_count(len(failed), 'site')}, the first at {first.site.name}: {first.error}")
    return texts + [f"halted: {reason}" for reason in halted.values()]


# Sizes of the picture in pixels.
PICTURE_WIDTH = 960

MIN_COLUMN_WIDTH, MAX_COLUMN_WIDTH = 4, 48

ROW_HEIGHT = 18

LETTER_WIDTH = 6

_KEPT_COLOUR, _FAILED_COLOUR, _OTHER_COLOUR, _MODULE_COLOUR = "#d1495b", "#7b2d8b", "#b8c4cf", "#e9eef2"

_INK = "#22303c"


class Bar(NamedTuple):
    """A rectangle of the picture, from one column to another: a module's call, or an event."""

    start: int
    stop: int
    depth: int
    colour: str
    text: str
    tip: str


def timeline(title: str, events: Sequence[Event], outcomes: Sequence[Outcome]) -> str:
    """A picture for each pass, one below the other."""
    pictures = []
    for index in dict.fromkeys(event.info.index for event in events):
        pairs = [(event, outcome) for event, outcome in zip(events, outcomes, strict=True) if event.info.index == index]
        bars = [*_module_bars([event for event, _ in pairs]), *_event_bars(pairs)]
        pictures.append(_picture(bars, n_columns=len(pairs)))
    legend = "".join(
        f'<span style="color:{colour}">&#9632;</span> {name} '
        for colour, name in (
            (_KEPT_COLOUR, "kept"),
            (_FAILED_COLOUR, "error"),
            (_OTHER_COLOUR, "not kept"),
            (_MODULE_COLOUR, "module"),
        )
    )
    return (
        f'<div style="font:12px sans-serif"><div>{escape(title)}</div><div>{legend}</div>'
        f'<div style="overflow-x:auto">{"".join(pictures)}</div></div>'
    )


def _module_bars(events: Sequence[Event]) -> Iterator[Bar]:
    """The calls of modules: a call lasts as long as it is on the stack of the events."""
    open_calls: list[tuple[tuple[str, int], int, str]] = []
    for column, event in enumerate(events):
        frames, numbers = event.site.frames, event.meta.stack_passes
        stack = [(frame.module_address, number) for frame, number in zip(frames, numbers, strict=True)]
        depth = 0
        while depth < min(len(stack), len(open_calls)) and open_calls[depth][0] == stack[depth]:
            depth += 1
        while len(open_calls) > depth:
            yield _module_bar(*open_calls.pop(), column, len(open_calls))
        for call, frame in zip(stack[depth:], frames[depth:], strict=True):
            open_calls.append((call, column, frame.module_type))
    while open_calls:
        yield _module_bar(*open_calls.pop(), len(events), len(open_calls))


def _module_bar(call: tuple[str, int], start: int, module_type: str, stop: int, depth: int) -> Bar:
    address, number = call
    name = f"{address}: {module_type}" if address else module_type
    tip = f"{name}, call {number}" if number > 1 else name
    return Bar(start, stop, depth, _MODULE_COLOUR, name.rpartition(".")[2], tip)


def _event_bars(pairs: Sequence[tuple[Event, Outcome]]) -> Iterator[Bar]:
    first_column_inside: dict[str, int] = {}
    for column, (event, outcome) in enumerate(pairs):
        site = event.site
        label = event.meta.label.removesuffix(site.output_address)
        composite = label.rpartition("/")[0]
        while composite:
            first_column_inside.setdefault(composite, column)
            composite = composite.rpartition("/")[0]
        # A composite returns after the ops inside it, and its bar spans them.
        start = first_column_inside.get(label, column)
        if site.kind not in ("module_enter", "module_exit"):
            names = segments(site)
            depth = len(site.frames) + len(names) - 1
            yield Bar(start, column + 1, depth, _colour(outcome), names[-1], _tip(event, outcome))
        elif outcome.decision is not None:  # else the bar of the module shows it
            yield Bar(column, column + 1, len(site.frames) - 1, _colour(outcome), "", _tip(event, outcome))


def _colour(outcome: Outcome) -> str:
    if isinstance(outcome.decision, PredicateFailure):
        return _FAILED_COLOUR
    return _OTHER_COLOUR if outcome.decision is None else _KEPT_COLOUR


def _tip(event: Event, outcome: Outcome) -> str:
    site, meta, decision = event.site, event.meta, outcome.decision
    tip = (
        f"{meta.label} ({site.name}), {site.kind}, {format_shape(meta.shape)} {meta.dtype}, "
        f"{format_bytes(event.nbytes)}, after {event.time * 1e3:.2f} ms"
    )
    if isinstance(decision, PredicateFailure):
        return f"{tip}\n{decision.error}"
    return tip if decision is None else f"{tip}\nkept: {format_bytes(outcome.nbytes)}, {decision!r}"


def _picture(bars: Sequence[Bar], *, n_columns: int) -> str:
    column_width = max(MIN_COLUMN_WIDTH, min(MAX_COLUMN_WIDTH, PICTURE_WIDTH / n_columns))
    height = ROW_HEIGHT * (1 + max(bar.depth for bar in bars))
    rectangles = "".join(_rectangle(bar, column_width) for bar in bars)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{n_columns * column_width:.0f}" height="{height}" '
        f'font-family="sans-serif" font-size="10">{rectangles}</svg>'
    )


def _rectangle(bar: Bar, column_width: float) -> str:
    width = (bar.stop - bar.start) * column_width
    x, y = bar.start * column_width, bar.depth * ROW_HEIGHT
    n_letters = int((width - 4) / LETTER_WIDTH)
    text = ""
    if n_letters > 2 and bar.text:
        text = f'<text x="{x + 3:.1f}" y="{y + 12}" fill="{_INK}">{escape(bar.text[:n_letters])}</text>'
    return (
        f'<g><title>{escape(bar.tip)}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW_HEIGHT - 2}" '
        f'fill="{bar.colour}" stroke="#ffffff" stroke-width="0.5"/>{text}</g>'
    )
