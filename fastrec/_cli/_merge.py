"""``fastrec merge``."""

from __future__ import annotations

import argparse

import msgspec

from fastrec._cli._command import Command
from fastrec._cli._failing import DONE
from fastrec._cli._output import Output, counted
from fastrec.files import merge


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="+", help="the recordings, finished: one of each rank or worker")
    parser.add_argument("--to", required=True, metavar="PATH", help="the recording to write; nothing may be there yet")
    parser.add_argument(
        "--virtual",
        action="store_true",
        help="copy nothing: write a small file that shows the others, which have to stay where they are",
    )


def _run(args: argparse.Namespace, output: Output) -> int:
    with output.progress("copying") as told:
        made = merge(args.path, args.to, virtual=args.virtual, told=told)
    output.document(msgspec.to_builtins(made))
    output.say(
        f"{made.path}: {counted(made.records, 'record')} in {counted(made.passes, 'pass', 'es')}, "
        f"{counted(made.steps, 'step')}"
    )
    output.table([("rank", "source"), *((str(n), path) for n, path in zip(made.ranks, made.sources, strict=True))])
    return DONE


COMMAND = Command(
    name="merge",
    summary="make one recording of those of several ranks or workers",
    details=(
        "They come in the order of the ranks that they tell, else in the order given, and\n"
        "`fastrec.load(...).ranks[1]` is what the one of rank 1 was. One that is missing or unfinished is an error."
    ),
    example="  fastrec merge run.*.h5 --to run.h5\n  fastrec merge run.0.h5 run.1.h5 --to run.h5 --virtual",
    arguments=_arguments,
    run=_run,
)
