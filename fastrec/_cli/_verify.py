"""``fastrec verify``."""

from __future__ import annotations

import argparse

import msgspec

from fastrec._cli._command import Command
from fastrec._cli._failing import DAMAGED, DONE
from fastrec._cli._output import Output, counted
from fastrec.files import Verified, verify
from fastrec.recording._records import told_bytes

MOST_SHOWN = 20


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording")


def _run(args: argparse.Namespace, output: Output) -> int:
    with output.progress("comparing") as told:
        found = verify(args.path, told)
    output.document(msgspec.to_builtins(found))
    _say(found, output)
    return DAMAGED if found.damage else DONE


def _say(found: Verified, output: Output) -> None:
    for one in found.damage[:MOST_SHOWN]:
        of = f" ({one.of})" if one.of else ""
        what = "bytes" if one.data_set == "late" else "rows"
        output.say(f"{one.file}: {one.data_set}{of}, {what} {one.first} to {one.first + one.count - 1}: {one.why}")
    if len(found.damage) > MOST_SHOWN:
        output.say(f"and {len(found.damage) - MOST_SHOWN:,} more; --json lists them all")
    result = f"damaged in {counted(len(found.damage), 'block')}" if found.damage else "as it was written"
    output.say(f"{found.path}: {result}; {counted(found.checksums, 'block')}, {told_bytes(found.nbytes)} compared")
    if found.unchecked:
        output.say(f"{counted(found.unchecked, 'value')} could not be compared, because the process was killed before")


COMMAND = Command(
    name="verify",
    summary="compare every block with the checksum that was written beside it",
    details=f"Lists the blocks that are damaged, and returns {DAMAGED} if there are some.",
    example="  fastrec verify run.h5\n  fastrec verify run.h5 --json | jq '.damage[].of'",
    arguments=_arguments,
    run=_run,
)
