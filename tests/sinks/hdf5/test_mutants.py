"""Files that were hurt in any way are read right, refused with a typed error, or read in part with a warning."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def survey(first: int, count: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.sinks.hdf5.mutants", f"{first}+{count}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    print(done.stdout)


def test_a_hurt_file_never_crashes_hangs_or_lies() -> None:
    survey(0, 100)


@pytest.mark.long
def test_thousands_of_hurt_files_never_crash_hang_or_lie() -> None:
    survey(100_000, 5000)
