"""The events of a dry run, site by site."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

from fastrec.dryrun.decisions import FORECAST_PASSES, Decider, Outcome
from fastrec.dryrun.events import Event
from fastrec.events.capture import CaptureSpec
from fastrec.events.sites import Frame, Site
from fastrec.recording._records import format_bytes
from fastrec.session.failures import PredicateFailure


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
        """One more event happened here."""
        meta = event.meta
        self.fires += 1
        self.value_bytes += event.nbytes
        self.kept_bytes += outcome.nbytes
        self.forecast_bytes += forecast
        self._values[f"{'x'.join(map(str, meta.shape)) or 'scalar'} {meta.dtype}"] = None
        if isinstance(outcome.decision, PredicateFailure):
            self.error = self.error or outcome.decision.error
        elif outcome.decision is not None:
            self.kept += 1
            self._specs[_how(outcome.decision)] = None

    @property
    def value(self) -> str:
        """Shape and dtype of its values."""
        first, *others = self._values
        return f"{first} and {len(others)} more" if others else first

    @property
    def verdict(self) -> str:
        """What is kept, or why that can't be told; empty where nothing is."""
        if self.error is not None:
            return f"✗ {self.error.splitlines()[0]}"
        if not self.kept:
            return ""
        how = ", ".join(spec for spec in self._specs if spec)
        part = f"{self.kept} of {self.fires}" if self.kept < self.fires else ""
        return "  ".join(filter(None, (f"● {format_bytes(self.kept_bytes)}", part, how)))


def _how(spec: CaptureSpec) -> str:
    return repr(spec).removeprefix("CaptureSpec(").removesuffix(")")


def segments(site: Site) -> list[str]:
    """The names of the composites around a site and its own, as they are written behind the module's address."""
    if site.kind in ("module_enter", "module_exit"):
        return [f"{'in' if site.kind == 'module_enter' else 'out'}{site.output_address}"]
    if site.kind == "input":
        return [f"{site.name} (input)"]
    if site.kind == "buffer":
        return [site.name.removeprefix(f"{site.module_address}.")]
    path = site.name.removesuffix(site.output_address).removeprefix(site.module_address).removeprefix("/")
    *around, last = path.split("/")
    return [*around, last + site.output_address]


def site_lines(events: Iterable[Event], outcomes: Iterable[Outcome], decider: Decider) -> list[SiteLine]:
    """One line per site, in the order in which they first were seen."""
    lines: dict[Site, SiteLine] = {}
    for event, outcome in zip(events, outcomes, strict=True):
        site = event.site
        line = lines.get(site) or lines.setdefault(site, SiteLine(site))
        line.add(event, outcome, decider.forecast(event, outcome))
    return list(lines.values())


def totals(lines: Iterable[SiteLine], halted: Mapping[int, str]) -> list[str]:
    """What is kept of the whole, in a few lines of text."""
    lines = list(lines)
    kept, fires = sum(line.kept for line in lines), sum(line.fires for line in lines)
    failed = [line for line in lines if line.error is not None]
    told = [
        f"{kept} of {counted(fires, 'event')} kept: {format_bytes(sum(line.kept_bytes for line in lines))} per pass, "
        f"{format_bytes(sum(line.forecast_bytes for line in lines))} per {FORECAST_PASSES:,} passes"
    ]
    if failed:
        told.append(f"errors at {counted(len(failed), 'site')}, the first at {failed[0].site.name}: {failed[0].error}")
    return told + [f"halted: {reason}" for reason in halted.values()]


def counted(number: int, thing: str) -> str:
    """How many of something, in words."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows of text as lines with aligned columns, without those that are empty."""
    columns = [column for column in zip(*rows, strict=True) if any(column)]
    widths = [max(map(len, column)) for column in columns]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in zip(*columns, strict=True)]


def summary(lines: Iterable[SiteLine], halted: Mapping[int, str]) -> str:
    """A table of all sites, and what is kept of the whole."""
    lines = list(lines)
    return "\n".join([*table(summary_rows(lines)), *totals(lines, halted)])


def summary_rows(lines: Iterable[SiteLine]) -> list[tuple[str, ...]]:
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


class Branch:
    """A module, a composite or a site, with what ran inside."""

    __slots__ = ("branches", "line", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.line: SiteLine | None = None
        self.branches: dict[object, Branch] = {}

    def into(self, key: object, name: str) -> Branch:
        """The branch below with this key, which grows if there is none."""
        branch = self.branches.get(key)
        if branch is None:
            branch = self.branches[key] = Branch(name)
        return branch


def tree(lines: Iterable[SiteLine], halted: Mapping[int, str]) -> str:
    """The tree as text, and what is kept of the whole."""
    lines = list(lines)
    top = Branch("")
    for line in lines:
        _grow(top, line)
    rows = [row for branch in top.branches.values() for row in _rows(branch, "", "")]
    return "\n".join([*table(rows), *totals(lines, halted)])


def _grow(top: Branch, line: SiteLine) -> None:
    site = line.site
    branch, outer = top, ""
    for frame in site.frames:
        branch = branch.into(frame.module_address, _module_name(frame, outer))
        outer = frame.module_address
    if site.kind == "module_enter" and not line.verdict:
        return  # mostly the value that the line above shows
    if site.kind == "module_exit" and not site.output_address:
        branch.line = line
        return
    *around, last = segments(site)
    for segment in around:
        branch = branch.into(("op", segment), segment)
    # A composite has a line of its own when it returns, after what is inside of it.
    key = ("op", last) if site.kind == "op" else (site.kind, last)
    branch.into(key, last).line = line


def _module_name(frame: Frame, outer: str) -> str:
    address = frame.module_address
    if not address:
        return frame.module_type
    return f"{address.removeprefix(f'{outer}.') if outer else address}: {frame.module_type}"


def _rows(branch: Branch, first: str, rest: str) -> Iterator[tuple[str, ...]]:
    line = branch.line
    if line is None:
        yield (first + branch.name, "", "", "", "")
    else:
        times = f"x{line.fires}" if line.fires > 1 else ""
        yield (first + branch.name, times, line.value, format_bytes(line.value_bytes), line.verdict)
    below = list(branch.branches.values())
    for each in below:
        is_last = each is below[-1]
        yield from _rows(each, rest + ("└─ " if is_last else "├─ "), rest + ("   " if is_last else "│  "))


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
        frames, numbers = event.site.frames, event.meta.stack_passes
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
        site, label = event.site, event.meta.label
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
    site, meta, decision = event.site, event.meta, outcome.decision
    shape = "x".join(map(str, meta.shape)) or "scalar"
    tip = (
        f"{meta.label} ({site.name}), {site.kind}, {shape} {meta.dtype}, {format_bytes(event.nbytes)}, "
        f"after {event.time * 1e3:.2f} ms"
    )
    if isinstance(decision, PredicateFailure):
        return f"{tip}\n{decision.error}"
    return tip if decision is None else f"{tip}\nkept: {format_bytes(outcome.nbytes)}, {decision!r}"


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
