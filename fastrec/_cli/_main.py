"""From a command line to a command and its exit code."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TextIO

from fastrec._cli._change import MERGE, RECOVER, REPACK, VERIFY
from fastrec._cli._command import (
    BROKEN_PIPE,
    DAMAGED,
    EXIT_CODES,
    FAILED,
    INTERRUPTED,
    NO_FILE,
    USAGE,
    Command,
    Output,
    print_error,
)
from fastrec._cli._export import EXPORT
from fastrec._cli._look import INFO, LS, SHOW
from fastrec._cli._report import REPORT
from fastrec._errors import DamagedFileError, FastrecError, FastrecWarning, RecordingNotFoundError
from fastrec._optional import __version__

COMMANDS: tuple[Command, ...] = (INFO, LS, SHOW, VERIFY, RECOVER, MERGE, REPACK, EXPORT, REPORT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    >>> main(["--version"])
    fastrec ...
    0
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a letter that the terminal lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        args = parser().parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", FastrecWarning)
            warnings.showwarning = _print_warning
            code: int = args.command.run(args, Output(as_json=args.json))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print_error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # When Python ends, it would try to write what is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (FastrecError, OSError) as error:
        print_error(f"error: {error_message(error, _paths(args))}")
        return exit_code(error)


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Say what a warning says, without the line of this package that raised it."""
    print_error(f"warning: {message}")


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    summaries = "\n".join(f"  {command.name:8} {command.summary}" for command in COMMANDS)
    main_parser = argparse.ArgumentParser(
        prog="fastrec",
        usage="fastrec COMMAND ...\n       fastrec COMMAND --help",
        description=f"Look into recordings and change their files.\n\ncommands:\n{summaries}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main_parser.add_argument("--version", action="version", version=f"fastrec {__version__}")
    subparsers = main_parser.add_subparsers(metavar="COMMAND", required=True, help=argparse.SUPPRESS)
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.name,
            prog=f"fastrec {command.name}",
            description=f"{command.summary[0].upper()}{command.summary[1:]}.\n\n{command.details}",
            epilog=f"example:\n{command.example}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(subparser)
        subparser.add_argument("--json", action="store_true", help="print one JSON document for programs")
        subparser.set_defaults(command=command)
    return main_parser


def _paths(args: argparse.Namespace) -> list[str]:
    return args.path if isinstance(args.path, list) else [args.path]


def exit_code(error: Exception) -> int:
    """The exit code of an error."""
    if isinstance(error, DamagedFileError):
        return DAMAGED
    return NO_FILE if isinstance(error, OSError) else FAILED


def error_message(error: Exception, paths: list[str]) -> str:
    """An error on one line, with what to do about it; ``paths`` are the recordings that were asked for."""
    if isinstance(error, OSError) and not isinstance(error, FastrecError):
        name = "" if error.filename is None else f"{os.fsdecode(error.filename)!r}: "
        text = f"{name}{error.strerror or error}"
    else:
        text = str(error)
    if isinstance(error, DamagedFileError):
        text += "; check that it is the right file and was copied completely"
    if isinstance(error, RecordingNotFoundError):
        missing = next((path for path in paths if repr(path) in text), paths[0])
        text += files_nearby(os.path.dirname(missing) or ".", os.path.basename(missing))
    return " ".join(text.split())


def files_nearby(folder: str, name: str) -> str:
    """Which recordings a folder has, preferably with a name like this one."""
    try:
        names = sorted(entry for entry in os.listdir(folder) if entry.endswith((".h5", ".hdf5")))
    except OSError as error:
        return f"; the folder {folder!r} can't be read: {error.strerror}"
    if not names:
        return f"; {folder!r} has no .h5 file"
    names = sorted(get_close_matches(name, names, n=3)) or names[:3]
    return f"; {folder!r} has {', '.join(map(repr, names))}"
