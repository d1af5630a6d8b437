"""The commands that look into a recording and change nothing: ``info``, ``ls`` and ``show``."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastrec._cli._command import DONE, Command, Output, counted
from fastrec._cli._progress import ProgressBar
from fastrec._cli._statistics import as_double, format_statistics, preview, statistics_of
from fastrec._errors import DamagedFileError, RecordKeyError
from fastrec.files import Description, describe
from fastrec.files._load import load
from fastrec.recording._records import (
    ActivationRecord,
    Records,
    SiteFacts,
    format_bytes,
    matching_sites,
    sites_of,
    table_of,
)
from fastrec.recording._source import Part
from fastrec.recording._view import View

# --- info -------------------------------------------------------------------------------------------------------------

MAX_NAMES = 8


def _add_info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording, by the path that the recorder was given, or a folder")


def _run_info(args: argparse.Namespace, output: Output) -> int:
    description = describe(args.path)
    output.document(msgspec.to_builtins(description))
    state = "finished" if description.finished else "not finished: still being written, or its process was killed"
    output.line(f"{description.path}: {state}")
    output.fields(_info_fields(description))
    for loss in description.losses:
        output.line(f"not read: {loss}")
    if not description.finished:
        output.line(f"`fastrec recover {description.path}` finishes it, once nothing writes to it any more")
    return DONE


def _info_fields(description: Description) -> list[tuple[str, str]]:
    nbytes = sum(file.nbytes for file in description.files)
    fields = [("files", f"{counted(len(description.files), 'file')}, {format_bytes(nbytes)}")]
    if description.began is not None:
        start = datetime.fromtimestamp(description.began)
        fields.append(("recorded", f"{start:%Y-%m-%d %H:%M:%S}, over {_format_seconds(description.seconds)}"))
    if description.sessions > 1:
        fields.append(("sessions", f"{description.sessions:,}, one after the other"))
    if description.ranks:
        ranks = ", ".join(map(str, description.ranks))
        fields.append(("merged of", f"{counted(len(description.processes), 'recording')}: rank {ranks}"))
    elif len(description.processes) > 1:
        fields.append(("processes", _format_counts(Counter(map(str, description.processes)))))
    if description.rank is not None:
        fields.append(("rank", str(description.rank)))
    fields.append(("passes", counted(description.passes, "pass", "es") + _format_ends(description)))
    for name, counts in (("entries", description.entries), ("phases", description.phases)):
        if any(counts):
            fields.append((name, _format_counts(counts)))
    if description.steps:
        fields.append(("steps", f"{description.steps:,} of {', '.join(description.step_columns) or 'no columns'}"))
    if description.episodes is not None:
        fields.append(("episodes", f"{description.episodes:,}"))
    fields.append(("sites", f"{description.sites:,}"))
    fields.append(("records", f"{description.records:,} with {format_bytes(description.nbytes)} of values"))
    fields += [(name, str(value)) for name, value in description.options.items() if value not in (None, "NEVER")]
    return fields


def _format_ends(description: Description) -> str:
    counts = {"failed": description.failed, "halted": description.halted}
    text = " and ".join(f"{count:,} {end}" for end, count in counts.items() if count)
    return f", {text}" if text else ""


def _format_counts(counts: dict[str, int]) -> str:
    names = [f"{name or '(no name)'} {count:,}" for name, count in list(counts.items())[:MAX_NAMES]]
    more = len(counts) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


INFO = Command(
    name="info",
    summary="say what a recording is and what is in it",
    details="Reads only the index, so it is quick however large the values are.",
    example="  fastrec info run.h5\n  fastrec info run.h5 --json | jq .passes",
    add_arguments=_add_info_arguments,
    run=_run_info,
)

# --- ls ---------------------------------------------------------------------------------------------------------------

ORDERS = ("run", "name", "records", "bytes")


def _add_ls_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording")
    parser.add_argument("globs", nargs="*", metavar="GLOB", help="only sites that match; ** crosses dots and slashes")
    parser.add_argument("--sort", choices=ORDERS, default="run", help="default: run, as they first ran")


def _run_ls(args: argparse.Namespace, output: Output) -> int:
    sites = list(load(args.path).sites.values())
    sites = _in_order(matching_sites(sites, args.globs) if args.globs else sites, args.sort)
    output.document(msgspec.to_builtins(sites))
    output.table(table_of({facts.name: facts for facts in sites}), right=("records", "passes", "bytes"))
    return DONE


def _in_order(sites: list[SiteFacts], order: str) -> list[SiteFacts]:
    if order == "name":
        return sorted(sites, key=lambda facts: facts.name)
    if order == "records":
        return sorted(sites, key=lambda facts: -facts.count)
    return sorted(sites, key=lambda facts: -facts.nbytes) if order == "bytes" else sites


LS = Command(
    name="ls",
    summary="list the sites: how many records each has, of which shape, dtype and size",
    details="A site is a place in the model: a module's output (`torso.0`) or an op in it (`torso.1/tanh`).",
    example="  fastrec ls run.h5\n  fastrec ls run.h5 'encoder.*' '**/softmax' --sort bytes",
    add_arguments=_add_ls_arguments,
    run=_run_ls,
)

# --- show -------------------------------------------------------------------------------------------------------------

PARTS: dict[Part, str] = {"activation": "activation", "transformed_activation": "transformed activation"}
"""What a record may have values of, and what it is called in text."""

READ_BYTES = 16 << 20
"""About so many bytes of values are in memory at a time."""

MAX_NUMBERS = 64
"""So many numbers of a value stand in the JSON document."""

JSON_FIELDS = (
    *("label", "site", "kind", "layer_type", "func_name", "tensor_shape", "tensor_device"),
    *("pass_index", "entry", "entry_pass", "phase", "step", "rank", "sample_id", "time_since_pass_start"),
)

TEXT_FIELDS = ("entry", "entry_pass", "phase", "rank", "sample_id", "modules", "tensor_device", "time_since_pass_start")


def _add_show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording")
    parser.add_argument("key", help="a module's address, a site or a label, as in recording[key]")
    parser.add_argument("--record", type=int, metavar="N", help="only one of its records: 0 is the first, -1 the last")


def _run_show(args: argparse.Namespace, output: Output) -> int:
    view = load(args.path)._of_key(args.key)
    if args.record is not None:
        if not -len(view) <= args.record < len(view):
            raise RecordKeyError(f"--record {args.record}: {args.key!r} has the records 0 to {len(view) - 1}")
        view = view.take(np.arange(len(view))[[args.record]])
    with output.progress("reading") as progress:
        statistics = {
            part: statistics_of(_values(view, part, progress)) for part in PARTS if len(_records_with_part(view, part))
        }
    sites, record = sites_of(view), Records(view)[-1]
    fields = _fields_of(record)
    output.document(
        {
            "key": args.key,
            "sites": msgspec.to_builtins(list(sites.values())),
            "statistics": msgspec.to_builtins(statistics),
            "record": {**fields, **{part: _first_numbers(getattr(record, part)) for part in statistics}},
        }
    )
    output.table(table_of(sites), right=("records", "passes", "bytes"))
    for part in statistics:
        output.line("")
        output.line(f"{PARTS[part]}: {format_statistics(statistics[part])}")
    output.line("")
    output.line(repr(record))
    known_fields = [name for name in TEXT_FIELDS if fields[name] not in (None, "")]
    output.fields([(name.replace("_", " "), str(fields[name])) for name in known_fields])
    for part in statistics:
        value = getattr(record, part)
        if value is not None:
            output.line(f"  {PARTS[part]}:")
            for row in preview(value):
                output.line(f"    {row}")
    if not statistics:
        output.line("no values were kept here, only contexts")
    return DONE


def _records_with_part(view: View, part: Part) -> npt.NDArray[np.int64]:
    """The positions of the records that have a part."""
    specs = {meta: view.spec(meta) for meta in view.metas}
    metas = [m for m, s in specs.items() if (s.save_raw if part == "activation" else s.transform is not None)]
    return np.flatnonzero((view.rows >= 0) & np.isin(view.meta_numbers, metas))


def _values(view: View, part: Part, progress: ProgressBar) -> Iterator[Tensor]:
    """The values of all records that have a part, read some at a time."""
    view = view.take(_records_with_part(view, part))
    nbytes = view.source.nbytes(view.meta_numbers, view.rows)
    done, total = 0, int(nbytes.sum())
    ends = np.flatnonzero(np.diff(np.cumsum(nbytes) // READ_BYTES)) + 1
    for positions in np.split(np.arange(len(view)), ends):
        try:
            yield from view.source.values(view.meta_numbers[positions], view.rows[positions], part)
        except KeyError:
            raise DamagedFileError(f"a record lacks its {PARTS[part]}, which the index says it has") from None
        done += int(nbytes[positions].sum())
        progress(done, total)


def _fields_of(record: ActivationRecord) -> dict[str, Any]:
    ctx = record.ctx
    fields = {name: getattr(ctx, name) for name in JSON_FIELDS}
    fields["tensor_device"] = str(ctx.tensor_device)
    fields["tensor_dtype"] = str(ctx.tensor_dtype).removeprefix("torch.")
    fields["modules"] = " > ".join(f"{f.module_address} {f.module_type}".strip() for f in ctx.module_stack)
    return fields


def _first_numbers(value: Tensor | None) -> Any:
    return None if value is None else as_double(value.reshape(-1)[:MAX_NUMBERS]).tolist()


SHOW = Command(
    name="show",
    summary="show statistics of the values at a site, and one record",
    details="Without --record, the statistics are of all records of the key, and the record is the last one.",
    example="  fastrec show run.h5 1/tanh\n  fastrec show run.h5 actor --record 0",
    add_arguments=_add_show_arguments,
    run=_run_show,
)
