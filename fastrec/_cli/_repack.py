"""``fastrec repack``."""

from __future__ import annotations

import argparse

import msgspec
import torch

from fastrec._cli._command import Command
from fastrec._cli._failing import DONE
from fastrec._cli._output import Output, counted
from fastrec._errors import OptionError
from fastrec.files import repack
from fastrec.recording._records import told_bytes


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording: of one file or several, or merged from others")
    parser.add_argument("--to", required=True, metavar="PATH", help="the file to write; nothing may be there yet")
    parser.add_argument("--compression", metavar="NAME[:LEVEL]", help="gzip, lzf, zstd or lz4, such as zstd:3")
    parser.add_argument("--dtype", help="cast floating values, such as to float16 or bfloat16")


def _run(args: argparse.Namespace, output: Output) -> int:
    with output.progress("writing") as told:
        made = repack(args.path, args.to, compression=args.compression, dtype=_dtype(args.dtype), told=told)
    output.document(msgspec.to_builtins(made))
    output.say(
        f"{made.path}: {counted(made.records, 'record')}, {told_bytes(made.after)} in place of "
        f"{told_bytes(made.before)}"
    )
    return DONE


def _dtype(name: str | None) -> torch.dtype | None:
    found = None if name is None else getattr(torch, name, None)
    if name is not None and not isinstance(found, torch.dtype):
        raise OptionError(f"--dtype {name!r} is no dtype; give float16, bfloat16, float32 or float64")
    return found


COMMAND = Command(
    name="repack",
    summary="write it anew as one file, compressed or in another dtype",
    details="The recording itself is left as it is. Virtual data sets become plain ones.",
    example=(
        "  fastrec repack run.h5 --to small.h5 --compression gzip --dtype float16\n"
        "  fastrec repack merged.h5 --to one.h5"
    ),
    arguments=_arguments,
    run=_run,
)
