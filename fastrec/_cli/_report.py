"""``fastrec report``."""

from __future__ import annotations

import argparse
import os

from fastrec._cli._command import DONE, Command, Output, counted
from fastrec._errors import OptionError, RecordingExistsError
from fastrec.files._load import load
from fastrec.report.page import write_report
from fastrec.report.run import RunStatistics


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="+", help="the recording; several are compared, their curves in one plot each")
    parser.add_argument("-o", "--to", required=True, metavar="PAGE", help="the page to write, such as report.html")
    parser.add_argument("--bins", type=int, default=200, metavar="N", help="time bins, at most (default: 200)")
    parser.add_argument("--phase", help="only passes of phases that match this glob")
    parser.add_argument(
        "--no-ranks", action="store_true", help="leave out effective ranks, which take most of the time"
    )
    parser.add_argument("--title", help="what stands above (default: the names of the files)")
    parser.add_argument("--overwrite", action="store_true", help="write over a page that is there")


def _run(args: argparse.Namespace, output: Output) -> int:
    if os.path.lexists(args.to) and not args.overwrite:  # before anything is read
        raise RecordingExistsError(f"{args.to!r} exists; give another path, or --overwrite")
    runs: dict[str, RunStatistics] = {}
    for name, path in zip(_names(args.path), args.path, strict=True):
        with output.progress(f"reading {name}") as progress:
            recording = load(path)
            if args.phase is not None:
                recording = recording.select(phase=args.phase)
            runs[name] = recording.describe(bins=args.bins, ranks=not args.no_ranks, progress=progress)
    write_report(runs, args.to, title=args.title, overwrite=args.overwrite)
    alarms = {name: [{"site": site, "first": str(bad)} for site, bad in run.alarms] for name, run in runs.items()}
    output.document(
        {"page": args.to, "runs": list(runs), "records": sum(run.records for run in runs.values()), "bad": alarms}
    )
    for run in runs.values():
        for site, bad in run.alarms[:1]:
            output.line(f"{site}: {bad}")
    sites = len({site for run in runs.values() for site in run})
    output.line(f"{args.to}: {counted(sites, 'site')}, {counted(sum(run.records for run in runs.values()), 'record')}")
    return DONE


def _names(paths: list[str]) -> list[str]:
    """Short names of the runs, all different."""
    short = [os.path.splitext(os.path.basename(os.path.normpath(path)))[0] for path in paths]
    names = short if len(set(short)) == len(short) else paths
    if len(set(names)) < len(names):
        raise OptionError(f"{max(names, key=names.count)!r} is given twice; give each recording once")
    return names


REPORT = Command(
    name="report",
    summary="write a page of statistics over the run: zeros, dormant units, norms, NaN and more",
    details=(
        "The page is one file that opens in any browser, offline. The page itself and docs/statistics.md say what is\n"
        "measured. Values are read once, a few MiB at a time."
    ),
    example=(
        "  fastrec report run.h5 -o report.html\n  fastrec report seed1.h5 seed2.h5 -o seeds.html --phase rollout"
    ),
    add_arguments=_add_arguments,
    run=_run,
)
