"""``fastrec verify``."""

from __future__ import annotations

import argparse

import msgspec
import torch

from fastrec._cli._command import DAMAGED, DONE, Command, Output, counted
from fastrec._errors import OptionError
from fastrec.files import Verified, merge, repack, verify
from fastrec.files._load import recover
from fastrec.recording._records import format_bytes

MAX_SHOWN = 20


def _arguments_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording")


def _run_verify(args: argparse.Namespace, output: Output) -> int:
    with output.progress("comparing") as progress:
        found = verify(args.path, progress)
    output.document(msgspec.to_builtins(found))
    _say(found, output)
    return DAMAGED if found.damage else DONE


def _say(found: Verified, output: Output) -> None:
    for one in found.damage[:MAX_SHOWN]:
        of = f" ({one.of})" if one.of else ""
        what = "bytes" if one.data_set == "late" else "rows"
        output.say(f"{one.file}: {one.data_set}{of}, {what} {one.first} to {one.first + one.count - 1}: {one.why}")
    if len(found.damage) > MAX_SHOWN:
        output.say(f"and {len(found.damage) - MAX_SHOWN:,} more; --json lists them all")
    result = f"damaged in {counted(len(found.damage), 'block')}" if found.damage else "as it was written"
    output.say(f"{found.path}: {result}; {counted(found.checksums, 'block')}, {format_bytes(found.nbytes)} compared")
    if found.unchecked:
        output.say(f"{counted(found.unchecked, 'value')} could not be compared, because the process was killed before")


VERIFY = Command(
    name="verify",
    summary="compare every block with the checksum that was written beside it",
    details=f"Lists the blocks that are damaged, and returns {DAMAGED} if there are some.",
    example="  fastrec verify run.h5\n  fastrec verify run.h5 --json | jq '.damage[].of'",
    arguments=_arguments_verify,
    run=_run_verify,
)


def _arguments_recover(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording, by the path that the recorder was given")
    parser.add_argument("--to", metavar="PATH", help="write finished copies there and leave the files alone")


def _run_recover(args: argparse.Namespace, output: Output) -> int:
    made = recover(args.path, args.to)
    output.document(msgspec.to_builtins(made))
    output.say(
        f"{made.path}: {counted(made.records, 'record')} in {counted(made.passes, 'pass', 'es')}, "
        f"{counted(made.steps, 'step')}"
    )
    output.say(f"lost: {made.lost}")
    return DONE


RECOVER = Command(
    name="recover",
    summary="finish the file of a recording whose process was killed",
    details="Not for a recording that is still being written: `fastrec info` and `fastrec.load` read it as it is.",
    example="  fastrec recover run.h5\n  fastrec recover run.h5 --to rescued.h5",
    arguments=_arguments_recover,
    run=_run_recover,
)


def _arguments_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="+", help="the recordings, finished: one of each rank or worker")
    parser.add_argument("--to", required=True, metavar="PATH", help="the recording to write; nothing may be there yet")
    parser.add_argument(
        "--virtual",
        action="store_true",
        help="copy nothing: write a small file that shows the others, which have to stay where they are",
    )


def _run_merge(args: argparse.Namespace, output: Output) -> int:
    with output.progress("copying") as progress:
        made = merge(args.path, args.to, virtual=args.virtual, progress=progress)
    output.document(msgspec.to_builtins(made))
    output.say(
        f"{made.path}: {counted(made.records, 'record')} in {counted(made.passes, 'pass', 'es')}, "
        f"{counted(made.steps, 'step')}"
    )
    output.table([("rank", "source"), *((str(n), path) for n, path in zip(made.ranks, made.sources, strict=True))])
    return DONE


MERGE = Command(
    name="merge",
    summary="make one recording of those of several ranks or workers",
    details=(
        "They come in the order of the ranks that they tell, else in the order given, and\n"
        "`fastrec.load(...).ranks[1]` is what the one of rank 1 was. One that is missing or unfinished is an error."
    ),
    example="  fastrec merge run.*.h5 --to run.h5\n  fastrec merge run.0.h5 run.1.h5 --to run.h5 --virtual",
    arguments=_arguments_merge,
    run=_run_merge,
)


def _arguments_repack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording: of one file or several, or merged from others")
    parser.add_argument("--to", required=True, metavar="PATH", help="the file to write; nothing may be there yet")
    parser.add_argument("--compression", metavar="NAME[:LEVEL]", help="gzip, lzf, zstd or lz4, such as zstd:3")
    parser.add_argument("--dtype", help="cast floating values, such as to float16 or bfloat16")


def _run_repack(args: argparse.Namespace, output: Output) -> int:
    with output.progress("writing") as progress:
        made = repack(args.path, args.to, compression=args.compression, dtype=_dtype(args.dtype), progress=progress)
    output.document(msgspec.to_builtins(made))
    output.say(
        f"{made.path}: {counted(made.records, 'record')}, {format_bytes(made.after)} in place of "
        f"{format_bytes(made.before)}"
    )
    return DONE


def _dtype(name: str | None) -> torch.dtype | None:
    found = None if name is None else getattr(torch, name, None)
    if name is not None and not isinstance(found, torch.dtype):
        raise OptionError(f"--dtype {name!r} is no dtype; give float16, bfloat16, float32 or float64")
    return found


REPACK = Command(
    name="repack",
    summary="write it anew as one file, compressed or in another dtype",
    details="The recording itself is left as it is. Virtual data sets become plain ones.",
    example=(
        "  fastrec repack run.h5 --to small.h5 --compression gzip --dtype float16\n"
        "  fastrec repack merged.h5 --to one.h5"
    ),
    arguments=_arguments_repack,
    run=_run_repack,
)
