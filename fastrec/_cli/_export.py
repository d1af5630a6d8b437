"""The command that writes a recording in the format of another tool: ``export``."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from fastrec._cli._command import DONE, Command, Output
from fastrec._cli._progress import ProgressSource
from fastrec._errors import OptionError, did_you_mean
from fastrec.exports import EXPORTERS, OPTIONS, export
from fastrec.files._load import load
from fastrec.recording._recording import Recording

FORMATS_BY_ENDING = {".npz": "numpy", ".safetensors": "safetensors", ".parquet": "parquet", ".zarr": "zarr"}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording")
    parser.add_argument("--to", required=True, metavar="PATH", help="what to write; nothing may be there yet")
    parser.add_argument(
        "--format",
        choices=list(EXPORTERS),
        help=f"default: from the ending of --to, if that is {', '.join(FORMATS_BY_ENDING)}",
    )
    parser.add_argument(
        *("-k", "--key"),
        action="append",
        metavar="KEY[=NAME]",
        help="only this address, site or label, and the name that it gets; may be repeated (default: all sites)",
    )
    parser.add_argument(
        *("-o", "--option"),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the format, as listed above; may be repeated",
    )
    parser.add_argument("--phase", help="only passes of phases that match this glob")


def _run(args: argparse.Namespace, output: Output) -> int:
    format = args.format or _format_of(args.to)
    options = _options(format, args.option)
    with output.progress("writing") as progress:
        recording = Recording(ProgressSource(load(args.path)._source, progress))
        if args.phase is not None:
            recording = recording.select(phase=args.phase)
        export(recording, args.to, format, keys=_keys(args.key, recording), **options)
    output.document({"path": args.to, "format": format, "records": len(recording)})
    output.line(f"{args.to}: {format}")
    return DONE


def _format_of(to: str) -> str:
    for ending, format in FORMATS_BY_ENDING.items():
        if to.rstrip("/").endswith(ending):
            return format
    raise OptionError(f"the ending of {to!r} does not say the format; add --format and one of {', '.join(EXPORTERS)}")


def _keys(texts: list[str] | None, recording: Recording) -> dict[str, str] | None:
    """The keys that were asked for, with the names that they get."""
    if texts is None:
        return None
    names: dict[str, str] = {}
    for text in texts:
        key, equals, name = text.rpartition("=")
        # A key may have an equals sign of its own.
        names.update({text: text} if not equals or text in recording else {key: name})
    return names


def _options(format: str, texts: list[str]) -> dict[str, Any]:
    """The options that were given, as the format takes them."""
    fields = {field.name: field.type for field in msgspec.structs.fields(OPTIONS[format])}
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in fields or not equals:
            hint = did_you_mean(name, fields) if fields else "it has none"
            raise OptionError(f"--option {text!r}: give NAME=VALUE with an option of {format!r}; {hint}")
        try:
            options[name] = msgspec.convert(value, fields[name], strict=False)
        except msgspec.ValidationError as error:
            raise OptionError(f"--option {text!r}: {error}") from None
    return options


def _all_options() -> str:
    """The options of each format with their defaults, for the help."""
    lines = []
    for format, options in OPTIONS.items():
        names = (
            field.name if field.default is msgspec.NODEFAULT else f"{field.name}={field.default!r}"
            for field in msgspec.structs.fields(options)
        )
        lines.append(f"  {format:12} {', '.join(names) or '-'}")
    return "\n".join(lines)


EXPORT = Command(
    name="export",
    summary="write it in the format of another tool",
    details=f"Values pass through in parts, so a recording may be larger than memory.\n\noptions:\n{_all_options()}",
    example=(
        "  fastrec export run.h5 --to run.safetensors -k 'torso.1/tanh=hidden'\n"
        "  fastrec export run/ --to run.parquet -k 'torso.1/tanh=hidden' -k reward\n"
        "  fastrec export run.h5 --to minari/run --format minari -o observations=obs -o actions=action"
    ),
    add_arguments=_add_arguments,
    run=_run,
)
