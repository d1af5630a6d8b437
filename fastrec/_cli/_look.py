"""``fastrec info``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrec._cli._command import DONE, Command, Output, Progress, counted
from fastrec._errors import DamagedFileError, RecordKeyError, did_you_mean
from fastrec.files import Description, describe
from fastrec.files._load import load
from fastrec.recording._records import ActivationRecord, Records, SiteFacts, format_bytes, sites_of, table_of
from fastrec.recording._view import View

MAX_SHOWN = 8


def _arguments_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording, by the path that the recorder was given")


def _run_info(args: argparse.Namespace, output: Output) -> int:
    found = describe(args.path)
    output.document(msgspec.to_builtins(found))
    state = "finished" if found.finished else "not finished: still being written, or its process was killed"
    output.say(f"{found.path}: {state}")
    output.facts(_info_rows(found))
    if not found.finished:
        output.say(f"`fastrec recover {found.path}` finishes it once nobody writes it any more")
    return DONE


def _info_rows(found: Description) -> list[tuple[str, str]]:
    rows = [("files", f"{counted(len(found.files), 'file')}, {format_bytes(sum(file.nbytes for file in found.files))}")]
    if found.began is not None:
        when = datetime.fromtimestamp(found.began)
        rows.append(("recorded", f"{when:%Y-%m-%d %H:%M:%S}, over {_format_seconds(found.seconds)}"))
    if found.sessions > 1:
        rows.append(("sessions", f"{found.sessions:,}, one after the other"))
    if found.ranks:
        rows.append(("merged of", f"{counted(len(found.ranks), 'recording')}: rank {', '.join(map(str, found.ranks))}"))
    if found.rank is not None:
        rows.append(("rank", str(found.rank)))
    rows.append(("passes", counted(found.passes, "pass", "es") + _format_end(found)))
    for name, counts in (("entries", found.entries), ("phases", found.phases)):
        if any(counts):
            rows.append((name, _named(counts)))
    if found.steps:
        rows.append(("steps", f"{found.steps:,} of {', '.join(found.step_columns) or 'no columns'}"))
    if found.episodes is not None:
        rows.append(("episodes", f"{found.episodes:,}"))
    rows.append(("sites", f"{found.sites:,}"))
    rows.append(("records", f"{found.records:,} with {format_bytes(found.nbytes)} of values"))
    rows += [(name, str(value)) for name, value in found.options.items() if value not in (None, "NEVER")]
    return rows


def _format_end(found: Description) -> str:
    bad = [f"{count:,} {how}" for how, count in (("failed", found.failed), ("halted", found.halted)) if count]
    return f", {' and '.join(bad)}" if bad else ""


def _named(counts: dict[str, int]) -> str:
    names = [f"{name or '(no name)'} {count:,}" for name, count in list(counts.items())[:MAX_SHOWN]]
    more = len(counts) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


INFO = Command(
    name="info",
    summary="say what a recording is and what it has",
    details="Reads the index alone, so it is quick however large the values are.",
    example="  fastrec info run.h5\n  fastrec info run.h5 --json | jq .passes",
    arguments=_arguments_info,
    run=_run_info,
)

ORDERS = ("run", "name", "records", "bytes")


def _arguments_ls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording")
    parser.add_argument("globs", nargs="*", metavar="GLOB", help="only sites that match; * crosses dots and slashes")
    parser.add_argument("--sort", choices=ORDERS, default="run", help="the order: as they first ran (default), ...")


def _run_ls(args: argparse.Namespace, output: Output) -> int:
    sites = list(load(args.path).sites.values())
    for glob in args.globs:
        if not any(fnmatchcase(facts.name, glob) for facts in sites):
            raise RecordKeyError(f"no site matches {glob!r}; {did_you_mean(glob, [facts.name for facts in sites])}")
    if args.globs:
        sites = [facts for facts in sites if any(fnmatchcase(facts.name, glob) for glob in args.globs)]
    sites = _sorted(sites, args.sort)
    output.document(msgspec.to_builtins(sites))
    output.table(table_of({facts.name: facts for facts in sites}), right=("records", "passes", "bytes"))
    return DONE


def _sorted(sites: list[SiteFacts], order: str) -> list[SiteFacts]:
    if order == "name":
        return sorted(sites, key=lambda facts: facts.name)
    if order == "records":
        return sorted(sites, key=lambda facts: -facts.count)
    return sorted(sites, key=lambda facts: -facts.nbytes) if order == "bytes" else sites


LS = Command(
    name="ls",
    summary="list the sites: how many records of which shape, dtype and size",
    details="A site is a place in the model: a module's output (`torso.0`) or an op in it (`torso.1/tanh`).",
    example="  fastrec ls run.h5\n  fastrec ls run.h5 'encoder.*' '*/softmax' --sort bytes",
    arguments=_arguments_ls,
    run=_run_ls,
)

STRETCH = 16 << 20

MAX_LISTED = 64

NAMES = {"activation": "activation", "transformed_activation": "transformed activation"}

CONTEXT = (
    *("label", "site", "kind", "layer_type", "func_name", "tensor_shape", "tensor_device"),
    *("pass_index", "entry", "entry_pass", "phase", "step", "sample_id", "time_since_pass_start"),
)

SHOWN = ("entry", "entry_pass", "phase", "sample_id", "modules", "tensor_device", "time_since_pass_start")


def _arguments_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording")
    parser.add_argument("key", help="a module's address, a site or a label, as in recording[key]")
    parser.add_argument(
        "--record", type=int, metavar="N", help="only this one of its records: 0 is the first, -1 the last"
    )


def _run_show(args: argparse.Namespace, output: Output) -> int:
    view = load(args.path)._of_key(args.key)
    if args.record is not None:
        if not -len(view) <= args.record < len(view):
            raise RecordKeyError(f"--record {args.record}: {args.key!r} has the records 0 to {len(view) - 1}")
        view = view.take(np.arange(len(view))[[args.record]])
    with output.progress("reading") as progress:
        numbers = {
            part: statistics_of(_pieces(view, part, progress)) for part in NAMES if len(_records_with_part(view, part))
        }
    sites, last = sites_of(view), Records(view)[-1]
    context = _context(last)
    output.document(
        {
            "key": args.key,
            "sites": msgspec.to_builtins(list(sites.values())),
            "statistics": msgspec.to_builtins(numbers),
            "record": {**context, **{part: _as_list(getattr(last, part)) for part in numbers}},
        }
    )
    output.table(table_of(sites), right=("records", "passes", "bytes"))
    for part, statistics in numbers.items():
        output.say("")
        output.say(f"{NAMES[part]}: {_format_statistics(statistics)}")
    output.say("")
    output.say(repr(last))
    output.facts([(name.replace("_", " "), str(context[name])) for name in SHOWN if context[name] not in (None, "")])
    for part in numbers:
        value = getattr(last, part)
        if value is not None:
            output.say(f"  {NAMES[part]}:")
            for line in preview(value):
                output.say(f"    {line}")
    if not numbers:
        output.say("no values were kept here, only contexts")
    return DONE


def _records_with_part(view: View, part: str) -> npt.NDArray[np.int64]:
    """The positions of the records that have a part."""
    specs = {kind: view.spec(kind) for kind in view.metas}
    kinds = [k for k, s in specs.items() if (s.save_raw if part == "activation" else s.transform is not None)]
    return np.flatnonzero((view.rows >= 0) & np.isin(view.meta_numbers, kinds))


def _pieces(view: View, part: str, progress: Progress) -> Iterator[Tensor]:
    """The values of all records that have a part, a stretch at a time."""
    view = view.take(_records_with_part(view, part))
    nbytes = view.source.nbytes(view.meta_numbers, view.rows)
    done, total = 0, int(nbytes.sum())
    for at in np.split(np.arange(len(view)), np.flatnonzero(np.diff(np.cumsum(nbytes) // STRETCH)) + 1):
        try:
            yield from view.source.values(view.meta_numbers[at], view.rows[at], part)
        except KeyError:
            raise DamagedFileError(f"a record lacks its {NAMES[part]}, which it was to have") from None
        done += int(nbytes[at].sum())
        progress(done, total)


def _context(record: ActivationRecord) -> dict[str, Any]:
    ctx = record.ctx
    found = {name: getattr(ctx, name) for name in CONTEXT}
    found["tensor_device"] = str(ctx.tensor_device)
    found["tensor_dtype"] = str(ctx.tensor_dtype).removeprefix("torch.")
    found["modules"] = " > ".join(f"{f.module_address} {f.module_type}".strip() for f in ctx.module_stack)
    return found


def _as_list(value: Tensor | None) -> Any:
    """The first numbers of a value."""
    return None if value is None else as_double(value.reshape(-1)[:MAX_LISTED]).tolist()


def _format_statistics(found: Statistics) -> str:
    told = f"{found.count:,} numbers"
    if found.mean is not None:
        told += f", mean {found.mean:.4g}, std {found.std:.4g}, from {found.least:.4g} to {found.most:.4g}"
    rest = [(found.zeros, "zero"), (found.nans, "NaN"), (found.infinite, "infinite")]
    return told + "".join(f", {count:,} {name}" for count, name in rest if count)


SHOW = Command(
    name="show",
    summary="show what a site has: statistics of its values, and one record",
    details="Without --record the statistics are of all records of the key, and its last one is shown.",
    example="  fastrec show run.h5 1/tanh\n  fastrec show run.h5 actor --record 0",
    arguments=_arguments_show,
    run=_run_show,
)

ROWS, COLUMNS = 4, 8


class Statistics(msgspec.Struct, frozen=True):
    """Of all numbers that are finite; the others are counted. Of complex numbers, the absolute values."""

    count: int
    mean: float | None
    std: float | None
    least: float | None
    most: float | None
    zeros: int
    nans: int
    infinite: int


def statistics_of(pieces: Iterable[Tensor]) -> Statistics:
    """The statistics of many tensors together, of which one is looked at at a time.

    >>> statistics_of([torch.tensor([1.0, float("nan")]), torch.tensor([3.0])])
    Statistics(count=3, mean=2.0, std=1.0, least=1.0, most=3.0, zeros=0, nans=1, infinite=0)
    """
    count = finite = zeros = nans = 0
    mean = spread = 0.0
    least, most = math.inf, -math.inf
    for piece in pieces:
        values = as_double(piece).reshape(-1)
        count += values.numel()
        nans += int(values.isnan().sum())
        zeros += int((values == 0).sum())
        values = values[values.isfinite()]
        own = values.numel()
        if not own:
            continue
        own_mean = float(values.mean())
        apart, together = own_mean - mean, finite + own
        # Chan, Golub and LeVeque 1979: variances of parts put together without loss of precision.
        spread += float((values - own_mean).square().sum()) + apart * apart * finite * own / together
        mean, finite = mean + apart * own / together, together
        least, most = min(least, float(values.min())), max(most, float(values.max()))
    infinite = count - finite - nans
    if not finite:
        return Statistics(count, None, None, None, None, zeros, nans, infinite)
    return Statistics(count, mean, math.sqrt(spread / finite), least, most, zeros, nans, infinite)


def preview(value: Tensor) -> list[str]:
    """The first rows and columns of a value, as text.

    >>> preview(torch.arange(24.0).reshape(2, 12))
    [' 0  1  2  3  4  5  6  7 ...', '12 13 14 15 16 17 18 19 ...']
    """
    rows = value.reshape(-1, value.shape[-1]) if value.ndim and value.numel() else value.reshape(1, -1)
    cells = [[_format_cell(cell) for cell in row[:COLUMNS].tolist()] for row in _plain(rows[:ROWS])]
    width = max((len(cell) for row in cells for cell in row), default=0)
    more = " ..." if rows.shape[1] > COLUMNS else ""
    lines = [" ".join(cell.rjust(width) for cell in row) + more for row in cells]
    return lines + (["..."] if rows.shape[0] > ROWS else [])


def as_double(value: Tensor) -> Tensor:
    """Real numbers of 64 bits."""
    plain = _plain(value)
    return (plain.abs() if plain.is_complex() else plain).double()


def _plain(value: Tensor) -> Tensor:
    """In a dtype that torch can calculate with."""
    if value.dtype == torch.complex32:
        return value.to(torch.complex64)
    if value.dtype.is_floating_point and value.dtype.itemsize < 4:
        return value.float()
    return value


def _format_cell(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float | complex) else str(cell)
