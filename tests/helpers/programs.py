"""Programs that tests run, and that a contributor need not have.

Where one is missing, the tests that run it are skipped, and say so. With FASTREC_NEEDS_PROGRAMS, as `.ci/run` sets it,
they fail: in CI, a browser that got lost must not leave pages untested.
"""

from __future__ import annotations

import os
import shutil

import pytest


def program(*names: str) -> str:
    """The path of a program under one of its names; skips the test, or fails it, where there is none."""
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        problem = f"{' or '.join(names)} is not installed; .ci/install-programs does it on Debian"
        if os.environ.get("FASTREC_NEEDS_PROGRAMS"):
            pytest.fail(problem)
        pytest.skip(problem)
    return path
