"""The modules that ran in a dry run as a tree, with the ops below them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from fastrec._dry_sites import SiteLine, segments, table, totals
from fastrec.events.sites import Frame
from fastrec.recording._records import told_bytes


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
        yield (first + branch.name, times, line.value, told_bytes(line.value_bytes), line.verdict)
    below = list(branch.branches.values())
    for each in below:
        is_last = each is below[-1]
        yield from _rows(each, rest + ("└─ " if is_last else "├─ "), rest + ("   " if is_last else "│  "))
