"""The modules that ran in a dry run as a tree of text, with their ops.

    Sequential             1,234 params  2x8 float32  64 B
    ├─ 0 to 11: Block x12    100 params  2x8 float32  64 B  ● 64 B each
    │  └─ ...

Modules in a row that do the same, and of which the same is kept, are one branch that shows the first of them. Below a
depth a module is one line. So a model of hundreds of layers fits on a screen.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

from fastrec._errors import OptionError
from fastrec.dryrun.report import SiteLine, align, segments, totals
from fastrec.events.sites import Frame
from fastrec.recording._records import format_bytes, format_count

MIN_REPETITIONS = 3
PERIODS = (1, 2)

Row = tuple[str, str, str, str, str, str]
"""The texts of a line: name, how often, parameters, value, its bytes, what is kept."""


class Branch:
    """A module, a composite or a site in the tree, with what ran inside it."""

    def __init__(self, name: str, module_type: str = "", parameters: int = 0) -> None:
        self.name = name
        self.module_type = module_type
        self.parameters = parameters
        self.line: SiteLine | None = None
        self.branches: dict[object, Branch] = {}

    def into(self, key: object, name: str, module_type: str = "", parameters: int = 0) -> Branch:
        """The branch below with this key, which grows if there is none."""
        branch = self.branches.get(key)
        if branch is None:
            branch = self.branches[key] = Branch(name, module_type, parameters)
        return branch

    @property
    def title(self) -> str:
        """The name with the class of a module."""
        return f"{self.name}: {self.module_type}" if self.name and self.module_type else self.name or self.module_type

    def row(self, prefix: str, verdict: str | None = None) -> Row:
        """The line of this branch."""
        parameters = _parameters(self.parameters)
        if self.line is None:
            return (prefix + self.title, "", parameters, "", "", verdict or "")
        times = f"x{self.line.fires}" if self.line.fires > 1 else ""
        shown = self.line.verdict if verdict is None else verdict
        return (prefix + self.title, times, parameters, self.line.value, format_bytes(self.line.value_bytes), shown)

    def structure(self) -> Hashable:
        """Equal for modules that do the same, and of which the same is kept."""
        inside = tuple((child.module_type or child.name, child.structure()) for child in self.branches.values())
        return self.module_type, self.row("")[1:], inside

    def lines(self) -> Iterator[SiteLine]:
        """The sites of this branch and of all below."""
        if self.line is not None:
            yield self.line
        for child in self.branches.values():
            yield from child.lines()


def tree(
    lines: Sequence[SiteLine],
    halted: Mapping[int, str],
    parameters: Mapping[str, int],
    *,
    depth: int | None,
    fold_repeats: bool,
) -> str:
    """The tree, and what is kept in all.

    Arguments:
        parameters: how many each module has with those inside it, by address.
        depth: how many levels of modules are shown with what is in them; None shows all.
        fold_repeats: show three or more modules in a row that do the same as one.
    """
    _check_depth(depth)
    root = Branch("")
    for line in lines:
        _add(root, line, parameters)
    writer = _TreeWriter(depth, fold_repeats=fold_repeats)
    rows = [row for branch in root.branches.values() for row in writer.rows(branch, "", "", 0)]
    return "\n".join([*align(rows), *totals(lines, halted)])


def _check_depth(depth: object) -> None:
    if depth is not None and (not isinstance(depth, int) or isinstance(depth, bool) or depth < 1):
        raise OptionError(f"depth={depth!r}: give a whole number from 1 up, or None for all levels")


def _add(root: Branch, line: SiteLine, parameters: Mapping[str, int]) -> None:
    site = line.site
    branch, outer = root, ""
    for frame in site.frames:
        address = frame.module_address
        branch = branch.into(address, _inner_address(frame, outer), frame.module_type, parameters.get(address, 0))
        outer = address
    if site.kind == "module_enter" and not line.verdict:
        return  # its value is mostly that of the line above
    if site.kind == "module_exit" and not site.output_address:
        branch.line = line
        return
    *composites, name = segments(site)
    for composite in composites:
        branch = branch.into(("op", composite), composite)
    # The same key as where the ops inside a composite put it: it returns after them, and gets its line then.
    key = ("op", name) if site.kind == "op" else (site.kind, name)
    branch.into(key, name).line = line


def _inner_address(frame: Frame, outer: str) -> str:
    """A module's address less that of the module around it."""
    return frame.module_address.removeprefix(f"{outer}.") if outer else frame.module_address


class _TreeWriter:
    """Writes branches as rows."""

    def __init__(self, depth: int | None, *, fold_repeats: bool) -> None:
        self._depth = depth
        self._fold_repeats = fold_repeats

    def rows(self, branch: Branch, prefix: str, child_prefix: str, level: int) -> Iterator[Row]:
        """A branch and all below; ``level`` is how many modules are around it, the model itself included."""
        if branch.module_type and self._is_closed(level):
            yield branch.row(prefix, _total(branch))
            return
        yield branch.row(prefix)
        yield from self._children(list(branch.branches.values()), child_prefix, level + bool(branch.module_type))

    def _is_closed(self, level: int) -> bool:
        """Whether a module with so many modules around it is one line."""
        return self._depth is not None and level >= max(self._depth, 1)

    def _children(self, children: Sequence[Branch], prefix: str, level: int) -> Iterator[Row]:
        groups = list(self._groups(children))
        for number, (period, group) in enumerate(groups):
            is_last = number == len(groups) - 1
            first, rest = prefix + ("└─ " if is_last else "├─ "), prefix + ("   " if is_last else "│  ")
            if len(group) == 1:
                yield from self.rows(group[0], first, rest, level)
                continue
            yield _fold_row(group, period, first)
            if self._is_closed(level):
                continue
            inside = list(group[0].branches.values()) if period == 1 else group[:period]
            yield from self._children(inside, rest, level + 1 if period == 1 else level)

    def _groups(self, children: Sequence[Branch]) -> Iterator[tuple[int, Sequence[Branch]]]:
        """Branches alone, or several in a row that repeat each other with a period."""
        structures = [child.structure() if child.module_type else None for child in children]
        start = 0
        while start < len(children):
            period, count = max(((p, _repetitions(structures, start, p)) for p in PERIODS), key=_covered)
            if not self._fold_repeats or count < MIN_REPETITIONS:
                period = count = 1
            yield period, children[start : start + period * count]
            start += period * count


def _repetitions(structures: Sequence[Hashable], start: int, period: int) -> int:
    """How often the structures from a place on repeat themselves; 1 for what is no module."""
    pattern = structures[start : start + period]
    if len(pattern) < period or None in pattern:
        return 1
    count = 1
    while structures[start + count * period : start + (count + 1) * period] == pattern:
        count += 1
    return count


def _covered(repetition: tuple[int, int]) -> tuple[int, int]:
    period, count = repetition
    return (period * count if count >= MIN_REPETITIONS else 0, -period)


def _fold_row(group: Sequence[Branch], period: int, prefix: str) -> Row:
    """The line of several branches; the value is that of the first, and what is kept that of each repetition."""
    repetition = group[:period]
    classes = ", ".join(branch.module_type for branch in repetition)
    name = f"{prefix}{group[0].name} to {group[-1].name}: {classes} x{len(group) // period}"
    if period == 1:
        _, times, parameters, value, nbytes, verdict = group[0].row("", _total(group[0]))
        return (name, times, parameters, value, nbytes, _each(verdict))
    parameters = _parameters(sum(branch.parameters for branch in repetition))
    return (name, "", parameters, "", "", _each(_counted(line for branch in repetition for line in branch.lines())))


def _each(verdict: str) -> str:
    return f"{verdict} each" if verdict else ""


def _parameters(count: int) -> str:
    return f"{count:,} params" if count else ""


def _total(branch: Branch) -> str:
    """What is kept of a branch and of all below, in words; nothing where nothing is."""
    lines = [line for line in branch.lines() if line.kept or line.error is not None]
    if len(lines) == 1 and branch.line is lines[0]:
        return lines[0].verdict
    return _counted(lines)


def _counted(lines: Iterable[SiteLine]) -> str:
    """The bytes that are kept at some sites, how many sites these are, and how many errors there are."""
    lines = list(lines)
    failed = sum(line.error is not None for line in lines)
    kept = [line for line in lines if line.kept]
    texts = []
    if kept:
        nbytes = format_bytes(sum(line.kept_bytes for line in kept))
        texts.append(f"● {nbytes}" + (f" at {len(kept)} sites" if len(kept) > 1 else ""))
    if failed:
        texts.append(f"✗ {format_count(failed, 'error')}")
    return "  ".join(texts)
