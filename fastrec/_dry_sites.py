"""The events of a dry run, site by site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fastrec._dry_decisions import FORECAST_PASSES, Decider, Outcome
from fastrec._dry_events import Event
from fastrec.events.capture import CaptureSpec
from fastrec.events.sites import Site
from fastrec.recording._records import told_bytes
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
        variant = event.variant
        self.fires += 1
        self.value_bytes += event.nbytes
        self.kept_bytes += outcome.nbytes
        self.forecast_bytes += forecast
        self._values[f"{'x'.join(map(str, variant.shape)) or 'scalar'} {variant.dtype}"] = None
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
        return "  ".join(filter(None, (f"● {told_bytes(self.kept_bytes)}", part, how)))


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
        f"{kept} of {counted(fires, 'event')} kept: {told_bytes(sum(line.kept_bytes for line in lines))} per pass, "
        f"{told_bytes(sum(line.forecast_bytes for line in lines))} per {FORECAST_PASSES:,} passes"
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
            told_bytes(line.value_bytes),
            told_bytes(line.forecast_bytes) if line.kept or line.forecast_bytes else "",
            line.verdict,
        )
        for line in lines
    ]
    return rows
