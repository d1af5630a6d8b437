"""``fastrec ls``."""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase

import msgspec

from fastrec._cli._command import Command
from fastrec._cli._failing import DONE
from fastrec._cli._output import Output
from fastrec._errors import RecordKeyError, near
from fastrec.files._load import load
from fastrec.recording._records import SiteFacts, table_of

ORDERS = ("run", "name", "records", "bytes")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording")
    parser.add_argument("globs", nargs="*", metavar="GLOB", help="only sites that match; * crosses dots and slashes")
    parser.add_argument("--sort", choices=ORDERS, default="run", help="the order: as they first ran (default), ...")


def _run(args: argparse.Namespace, output: Output) -> int:
    sites = list(load(args.path).sites.values())
    for glob in args.globs:
        if not any(fnmatchcase(facts.name, glob) for facts in sites):
            raise RecordKeyError(f"no site matches {glob!r}; {near(glob, [facts.name for facts in sites])}")
    if args.globs:
        sites = [facts for facts in sites if any(fnmatchcase(facts.name, glob) for glob in args.globs)]
    sites = _sorted(sites, args.sort)
    output.document(msgspec.to_builtins(sites))
    output.table(table_of({facts.name: facts for facts in sites}), right=("records", "passes", "bytes"))
    return DONE


def _sorted(sites: list[SiteFacts], order: str) -> list[SiteFacts]:
    if order == "name":
        return sorted(sites, key=lambda facts: facts.name)
    if order == "records":
        return sorted(sites, key=lambda facts: -facts.count)
    return sorted(sites, key=lambda facts: -facts.nbytes) if order == "bytes" else sites


COMMAND = Command(
    name="ls",
    summary="list the sites: how many records of which shape, dtype and size",
    details="A site is a place in the model: a module's output (`torso.0`) or an op in it (`torso.1/tanh`).",
    example="  fastrec ls run.h5\n  fastrec ls run.h5 'encoder.*' '*/softmax' --sort bytes",
    arguments=_arguments,
    run=_run,
)
