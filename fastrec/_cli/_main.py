"""From the words behind ``fastrec`` to a command and its exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from fastrec._cli._change import MERGE, RECOVER, REPACK, VERIFY
from fastrec._cli._command import (
    BROKEN_PIPE,
    CODES,
    INTERRUPTED,
    USAGE,
    Command,
    Output,
    code_of,
    message_of,
    near_files,
    printable,
)
from fastrec._cli._export import EXPORT
from fastrec._cli._look import INFO, LS, SHOW
from fastrec._cli._report import REPORT
from fastrec._errors import FastrecError, RecordingFileError

COMMANDS: tuple[Command, ...] = (INFO, LS, SHOW, VERIFY, RECOVER, MERGE, REPACK, EXPORT, REPORT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code.

    >>> main(["--version"])
    fastrec ...
    0
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a letter is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        args = parser().parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE
    try:
        for path in _paths(args):
            _check_no_folder(path)
        code: int = args.command.run(args, Output(as_json=args.json))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        sys.stderr.write("fastrec: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # Python would try to write the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (FastrecError, OSError) as error:
        sys.stderr.write(f"fastrec: error: {printable(message_of(error, _paths(args)))}\n")
        return code_of(error)


def _paths(args: argparse.Namespace) -> list[str]:
    return args.path if isinstance(args.path, list) else [args.path]


def _check_no_folder(path: str) -> None:
    if os.path.isdir(path):
        raise RecordingFileError(f"{path!r} is a folder; give the path of a recording{near_files(path, '')}")


def parser() -> argparse.ArgumentParser:
    """What the command line understands."""
    listed = "\n".join(f"  {command.name:8} {command.summary}" for command in COMMANDS)
    made = argparse.ArgumentParser(
        prog="fastrec",
        usage="fastrec COMMAND ...\n       fastrec COMMAND --help",
        description=f"Look into recordings and change their files.\n\ncommands:\n{listed}\n\n{CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"fastrec {version('fastrec')}")
    found = made.add_subparsers(metavar="COMMAND", required=True, help=argparse.SUPPRESS)
    for command in COMMANDS:
        own = found.add_parser(
            command.name,
            prog=f"fastrec {command.name}",
            description=f"{command.summary[0].upper()}{command.summary[1:]}.\n\n{command.details}",
            epilog=f"example:\n{command.example}\n\n{CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.arguments(own)
        own.add_argument("--json", action="store_true", help="print one JSON document for programs")
        own.set_defaults(command=command)
    return made
