"""``fastrec export``."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from fastrec._cli._command import DONE, Command, Output, ProgressSource
from fastrec._errors import OptionError, did_you_mean
from fastrec.exports import EXPORTERS, OPTIONS, export
from fastrec.files._load import load
from fastrec.recording._recording import Recording

ENDINGS = {".npz": "numpy", ".safetensors": "safetensors"}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the recording")
    parser.add_argument("--to", required=True, metavar="PATH", help="the file or folder; nothing may be there yet")
    parser.add_argument(
        "--format", choices=list(EXPORTERS), help="by default from the ending of --to: .npz, .safetensors"
    )
    parser.add_argument(
        *("-k", "--key"),
        action="append",
        metavar="KEY[=NAME]",
        help="only these addresses, sites or labels, each with the name that it gets (default: all sites)",
    )
    parser.add_argument(
        *("-o", "--option"),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the format, see below",
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
    output.say(f"{args.to}: {format}")
    return DONE


def _format_of(to: str) -> str:
    for ending, format in ENDINGS.items():
        if to.endswith(ending):
            return format
    raise OptionError(f"{to!r} does not tell the format; add --format and one of {', '.join(EXPORTERS)}")


def _keys(given: list[str] | None, recording: Recording) -> list[str] | dict[str, str] | None:
    """Keys, or the names that they get by key; a key may have an equals sign of its own."""
    if given is None:
        return None
    found: dict[str, str] = {}
    for text in given:
        key, equals, name = text.rpartition("=")
        found.update({text: text} if not equals or text in recording else {key: name})
    return found


def _options(format: str, given: list[str]) -> dict[str, Any]:
    """The options as the format's struct takes them."""
    fields = {field.name: field.type for field in msgspec.structs.fields(OPTIONS[format])}
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if name not in fields or not equals:
            known = did_you_mean(name, fields) if fields else "it has none"
            raise OptionError(f"--option {text!r}: give NAME=VALUE with a name that {format!r} has; {known}")
        try:
            found[name] = msgspec.convert(value, fields[name], strict=False)
        except msgspec.ValidationError as error:
            raise OptionError(f"--option {text!r}: {error}") from None
    return found


def _listed() -> str:
    lines = []
    for format, options in OPTIONS.items():
        told = ", ".join(
            f"{field.name}{'' if field.default is msgspec.NODEFAULT else f'={field.default!r}'}"
            for field in msgspec.structs.fields(options)
        )
        lines.append(f"  {format:12} {told or '-'}")
    return "\n".join(lines)


EXPORT = Command(
    name="export",
    summary="write it in another tool's format",
    details=f"Values are written bit by bit, so a recording may be larger than memory.\n\noptions:\n{_listed()}",
    example=(
        "  fastrec export run.h5 --to run.safetensors -k 'torso.1/tanh=hidden'\n"
        "  fastrec export run.h5 --to minari/run --format minari -o observations=obs -o actions=action"
    ),
    arguments=_arguments,
    run=_run,
)
