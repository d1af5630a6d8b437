"""``fastrec show``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastrec._cli._command import Command
from fastrec._cli._failing import DONE
from fastrec._cli._numbers import Statistics, as_double, preview, statistics_of
from fastrec._cli._output import Output
from fastrec._cli._progress import Progress
from fastrec._errors import DamagedFileError, RecordKeyError
from fastrec.files._load import load
from fastrec.recording._records import ActivationRecord, Records, sites_of, table_of
from fastrec.recording._view import View

STRETCH = 16 << 20
MOST_LISTED = 64
NAMES = {"activation": "activation", "transformed_activation": "transformed activation"}
CONTEXT = (
    *("label", "site", "kind", "layer_type", "func_name", "tensor_shape", "tensor_device"),
    *("pass_index", "entry", "entry_pass", "phase", "step", "sample_id", "time_since_pass_start"),
)
SHOWN = ("entry", "entry_pass", "phase", "sample_id", "modules", "tensor_device", "time_since_pass_start")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording")
    parser.add_argument("key", help="a module's address, a site or a label, as in recording[key]")
    parser.add_argument(
        "--record", type=int, metavar="N", help="only this one of its records: 0 is the first, -1 the last"
    )


def _run(args: argparse.Namespace, output: Output) -> int:
    view = load(args.path)._at(args.key)
    if args.record is not None:
        if not -len(view) <= args.record < len(view):
            raise RecordKeyError(f"--record {args.record}: {args.key!r} has the records 0 to {len(view) - 1}")
        view = view.take(np.arange(len(view))[[args.record]])
    with output.progress("reading") as progress:
        numbers = {part: statistics_of(_pieces(view, part, progress)) for part in NAMES if len(_having(view, part))}
    sites, last = sites_of(view), Records(view)[-1]
    context = _context(last)
    output.document(
        {
            "key": args.key,
            "sites": msgspec.to_builtins(list(sites.values())),
            "statistics": msgspec.to_builtins(numbers),
            "record": {**context, **{part: _listed(getattr(last, part)) for part in numbers}},
        }
    )
    output.table(table_of(sites), right=("records", "passes", "bytes"))
    for part, statistics in numbers.items():
        output.say("")
        output.say(f"{NAMES[part]}: {_told(statistics)}")
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


def _having(view: View, part: str) -> npt.NDArray[np.int64]:
    """The positions of the records that have a part."""
    specs = {kind: view.spec(kind) for kind in view.kinds}
    kinds = [k for k, s in specs.items() if (s.save_raw if part == "activation" else s.transform is not None)]
    return np.flatnonzero((view.rows >= 0) & np.isin(view.variants, kinds))


def _pieces(view: View, part: str, progress: Progress) -> Iterator[Tensor]:
    """The values of all records that have a part, a stretch at a time."""
    view = view.take(_having(view, part))
    nbytes = view.source.nbytes(view.variants, view.rows)
    done, total = 0, int(nbytes.sum())
    for at in np.split(np.arange(len(view)), np.flatnonzero(np.diff(np.cumsum(nbytes) // STRETCH)) + 1):
        try:
            yield from view.source.values(view.variants[at], view.rows[at], part)
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


def _listed(value: Tensor | None) -> Any:
    """The first numbers of a value."""
    return None if value is None else as_double(value.reshape(-1)[:MOST_LISTED]).tolist()


def _told(found: Statistics) -> str:
    told = f"{found.count:,} numbers"
    if found.mean is not None:
        told += f", mean {found.mean:.4g}, std {found.std:.4g}, from {found.least:.4g} to {found.most:.4g}"
    rest = [(found.zeros, "zero"), (found.nans, "NaN"), (found.infinite, "infinite")]
    return told + "".join(f", {count:,} {name}" for count, name in rest if count)


COMMAND = Command(
    name="show",
    summary="show what a site has: statistics of its values, and one record",
    details="Without --record the statistics are of all records of the key, and its last one is shown.",
    example="  fastrec show run.h5 1/tanh\n  fastrec show run.h5 actor --record 0",
    arguments=_arguments,
    run=_run,
)
