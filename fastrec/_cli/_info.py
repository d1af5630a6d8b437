"""``fastrec info``."""

from __future__ import annotations

import argparse
from datetime import datetime

import msgspec

from fastrec._cli._command import Command
from fastrec._cli._failing import DONE
from fastrec._cli._output import Output, counted
from fastrec.files import Description, describe
from fastrec.recording._records import told_bytes

MOST_SHOWN = 8


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording, by the path that the recorder was given")


def _run(args: argparse.Namespace, output: Output) -> int:
    found = describe(args.path)
    output.document(msgspec.to_builtins(found))
    state = "finished" if found.finished else "not finished: still being written, or its process was killed"
    output.say(f"{found.path}: {state}")
    output.facts(_rows(found))
    if not found.finished:
        output.say(f"`fastrec recover {found.path}` finishes it once nobody writes it any more")
    return DONE


def _rows(found: Description) -> list[tuple[str, str]]:
    rows = [("files", f"{counted(len(found.files), 'file')}, {told_bytes(sum(file.nbytes for file in found.files))}")]
    if found.began is not None:
        when = datetime.fromtimestamp(found.began)
        rows.append(("recorded", f"{when:%Y-%m-%d %H:%M:%S}, over {_told(found.seconds)}"))
    if found.sessions > 1:
        rows.append(("sessions", f"{found.sessions:,}, one after the other"))
    if found.ranks:
        rows.append(("merged of", f"{counted(len(found.ranks), 'recording')}: rank {', '.join(map(str, found.ranks))}"))
    if found.rank is not None:
        rows.append(("rank", str(found.rank)))
    rows.append(("passes", counted(found.passes, "pass", "es") + _ended(found)))
    for name, counts in (("entries", found.entries), ("phases", found.phases)):
        if any(counts):
            rows.append((name, _named(counts)))
    if found.steps:
        rows.append(("steps", f"{found.steps:,} of {', '.join(found.step_columns) or 'no columns'}"))
    if found.episodes is not None:
        rows.append(("episodes", f"{found.episodes:,}"))
    rows.append(("sites", f"{found.sites:,}"))
    rows.append(("records", f"{found.records:,} with {told_bytes(found.nbytes)} of values"))
    rows += [(name, str(value)) for name, value in found.options.items() if value not in (None, "NEVER")]
    return rows


def _ended(found: Description) -> str:
    bad = [f"{count:,} {how}" for how, count in (("failed", found.failed), ("halted", found.halted)) if count]
    return f", {' and '.join(bad)}" if bad else ""


def _named(counts: dict[str, int]) -> str:
    names = [f"{name or '(no name)'} {count:,}" for name, count in list(counts.items())[:MOST_SHOWN]]
    more = len(counts) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _told(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


COMMAND = Command(
    name="info",
    summary="say what a recording is and what it has",
    details="Reads the index alone, so it is quick however large the values are.",
    example="  fastrec info run.h5\n  fastrec info run.h5 --json | jq .passes",
    arguments=_arguments,
    run=_run,
)
