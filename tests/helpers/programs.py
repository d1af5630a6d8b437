"""Programs and packages that tests run, and that a contributor need not have.

Where one is missing, the tests that run it are skipped, and say so. With FASTREC_NEEDS_PROGRAMS, as `.ci/run` sets it,
they fail: in CI, a browser that got lost must not leave pages untested.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest


def program(*names: str) -> str:
    """The path of a program under one of its names; skips the test, or fails it, where there is none."""
    path = next(filter(None, map(shutil.which, names)), None)
    return path or _missing(f"{' or '.join(names)} is not installed; .ci/install-programs does it on Debian")


def package(name: str) -> Path:
    """The folder of a package; skips the test, or fails it, where it is not installed."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        _missing(f"{name} is not installed; make install does it")
    return Path(spec.origin).parent


def _missing(problem: str) -> NoReturn:
    if os.environ.get("FASTREC_NEEDS_PROGRAMS"):
        pytest.fail(problem)
    pytest.skip(problem)
