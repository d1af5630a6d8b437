"""What a command is."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import msgspec

from fastrec._cli._output import Output


class Command(msgspec.Struct, frozen=True):
    """One word behind ``fastrec``: what it says of itself, the arguments that it takes, and what it does.

    ``run`` returns the exit code.
    """

    name: str
    summary: str
    details: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Output], int]
