"""The commands that check files of recordings, or write new ones: ``verify``, ``recover``, ``merge``, ``repack``."""

from __future__ import annotations

import argparse

import msgspec
import torch

from fastrec._cli._command import DAMAGED, DONE, Command, Output, counted
from fastrec._errors import OptionError
from fastrec.files import Damage, merge, repack, verify
from fastrec.files._load import recover
from fastrec.recording._records import format_bytes

# --- verify -----------------------------------------------------------------------------------------------------------

MAX_DAMAGED = 20
"""So many damaged blocks are listed as text; the JSON document has all."""


def _add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording, or a folder")


def _run_verify(args: argparse.Namespace, output: Output) -> int:
    with output.progress("comparing") as progress:
        verified = verify(args.path, progress)
    output.document(msgspec.to_builtins(verified))
    for damage in verified.damage[:MAX_DAMAGED]:
        output.line(_format_damage(damage))
    if len(verified.damage) > MAX_DAMAGED:
        output.line(f"and {len(verified.damage) - MAX_DAMAGED:,} more; --json lists them all")
    state = f"damaged in {counted(len(verified.damage), 'block')}" if verified.damage else "as it was written"
    output.line(
        f"{verified.path}: {state}; {counted(verified.checksums, 'block')}, {format_bytes(verified.nbytes)} compared"
    )
    if verified.unchecked:
        output.line(
            f"{counted(verified.unchecked, 'value')} could not be compared, because the process was killed before it "
            "wrote the checksum"
        )
    return DAMAGED if verified.damage else DONE


def _format_damage(damage: Damage) -> str:
    owner = f" ({damage.of})" if damage.of else ""
    if not damage.count:  # what is damaged is not a block
        return f"{damage.file}: {f'{damage.data_set}, ' if damage.data_set else ''}{damage.why}"
    unit = "bytes" if damage.data_set == "late" else "rows"
    last = damage.first + damage.count - 1
    return f"{damage.file}: {damage.data_set}{owner}, {unit} {damage.first} to {last}: {damage.why}"


VERIFY = Command(
    name="verify",
    summary="compare every block with the checksum that was written beside it",
    details=f"Lists the damaged blocks. If there are any, the exit code is {DAMAGED}.",
    example="  fastrec verify run.h5\n  fastrec verify run.h5 --json | jq '.damage[].of'",
    add_arguments=_add_verify_arguments,
    run=_run_verify,
)


# --- recover ----------------------------------------------------------------------------------------------------------


def _add_recover_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording, by the path that the recorder was given")
    parser.add_argument("--to", metavar="PATH", help="write finished copies there, and leave the files as they are")
    parser.add_argument("--force", action="store_true", help="even if nobody can know whether it is still written")
    parser.add_argument("--discard", action="store_true", help="remove the unfinished file even if it is damaged")


def _run_recover(args: argparse.Namespace, output: Output) -> int:
    recovered = recover(args.path, args.to, force=args.force, discard=args.discard)
    output.document(msgspec.to_builtins(recovered))
    output.line(_format_counts(recovered.path, recovered.records, recovered.passes, recovered.steps))
    output.line(f"lost: {recovered.lost}")
    return DONE


def _format_counts(path: str, records: int, passes: int, steps: int) -> str:
    return f"{path}: {counted(records, 'record')} in {counted(passes, 'pass', 'es')}, {counted(steps, 'step')}"


RECOVER = Command(
    name="recover",
    summary="finish the file of a recording whose process was killed",
    details=(
        "Not for a recording that is still being written, which `fastrec info` and `fastrec.load` can read as it is."
    ),
    example="  fastrec recover run.h5\n  fastrec recover run.h5 --to rescued.h5",
    add_arguments=_add_recover_arguments,
    run=_run_recover,
)


# --- merge ------------------------------------------------------------------------------------------------------------


def _add_merge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="+", help="the finished recordings of ranks or workers, or folders of them")
    parser.add_argument("--to", required=True, metavar="PATH", help="the recording to write; nothing may be there yet")
    parser.add_argument(
        "--virtual",
        action="store_true",
        help="copy nothing: write a small file that refers to the others, which have to stay where they are",
    )


def _run_merge(args: argparse.Namespace, output: Output) -> int:
    with output.progress("copying") as progress:
        merged = merge(args.path, args.to, virtual=args.virtual, progress=progress)
    output.document(msgspec.to_builtins(merged))
    output.line(_format_counts(merged.path, merged.records, merged.passes, merged.steps))
    sources = zip(map(str, merged.ranks), merged.sources, strict=True)
    output.table([("rank", "source"), *sources])
    return DONE


MERGE = Command(
    name="merge",
    summary="merge the recordings of several ranks or workers into one",
    details=(
        "They are ordered by the ranks that are noted in them, or else as they are given.\n"
        "`fastrec.load(...).ranks[1]` is the recording of rank 1 again. A missing or unfinished one is an error."
    ),
    example="  fastrec merge run.*.h5 --to run.h5\n  fastrec merge run.0.h5 run.1.h5 --to run.h5 --virtual",
    add_arguments=_add_merge_arguments,
    run=_run_merge,
)


# --- repack -----------------------------------------------------------------------------------------------------------


def _add_repack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording, in one file or several, or merged from others")
    parser.add_argument("--to", required=True, metavar="PATH", help="the file to write; nothing may be there yet")
    parser.add_argument("--compression", metavar="NAME[:LEVEL]", help="gzip, lzf, zstd or lz4, such as zstd:3")
    parser.add_argument("--dtype", help="cast floating values, such as to float16 or bfloat16")


def _run_repack(args: argparse.Namespace, output: Output) -> int:
    with output.progress("writing") as progress:
        dtype = _dtype(args.dtype)
        repacked = repack(args.path, args.to, compression=args.compression, dtype=dtype, progress=progress)
    output.document(msgspec.to_builtins(repacked))
    output.line(
        f"{repacked.path}: {counted(repacked.records, 'record')}, {format_bytes(repacked.after)} instead of "
        f"{format_bytes(repacked.before)}"
    )
    return DONE


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise OptionError(f"--dtype {name!r} is not a dtype; give float16, bfloat16, float32 or float64")
    return dtype


REPACK = Command(
    name="repack",
    summary="write it again as one file, compressed or in another dtype",
    details="The recording itself stays as it is. Virtual data sets become plain ones.",
    example=(
        "  fastrec repack run.h5 --to small.h5 --compression gzip --dtype float16\n"
        "  fastrec repack merged.h5 --to one.h5"
    ),
    add_arguments=_add_repack_arguments,
    run=_run_repack,
)
