"""``fastrec recover``."""

from __future__ import annotations

import argparse

import msgspec

from fastrec._cli._command import Command
from fastrec._cli._failing import DONE
from fastrec._cli._output import Output, counted
from fastrec.files._load import recover


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording, by the path that the recorder was given")
    parser.add_argument("--to", metavar="PATH", help="write finished copies there and leave the files alone")


def _run(args: argparse.Namespace, output: Output) -> int:
    made = recover(args.path, args.to)
    output.document(msgspec.to_builtins(made))
    output.say(
        f"{made.path}: {counted(made.records, 'record')} in {counted(made.passes, 'pass', 'es')}, "
        f"{counted(made.steps, 'step')}"
    )
    output.say(f"lost: {made.lost}")
    return DONE


COMMAND = Command(
    name="recover",
    summary="finish the file of a recording whose process was killed",
    details="Not for a recording that is still being written: `fastrec info` and `fastrec.load` read it as it is.",
    example="  fastrec recover run.h5\n  fastrec recover run.h5 --to rescued.h5",
    arguments=_arguments,
    run=_run,
)
