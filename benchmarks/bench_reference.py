"""The reference, where ``make bench-reference`` has installed it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.models import CASES

ROOT = Path(__file__).parent.parent
VERSIONS = ["2.15.0", "2.36.1"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CASES)
def test_overhead_of_the_reference(benchmark: BenchmarkFixture, name: str, version: str) -> None:
    packages = ROOT / ".benchmarks" / f"torchlens-{version}"
    if not benchmark.enabled or not packages.is_dir():
        pytest.skip("only timed, and only where make bench-reference has installed it")

    def contest() -> str:
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.contestants.reference", name],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(packages)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    seconds = json.loads(benchmark.pedantic(contest).splitlines()[-1])
    benchmark.extra_info.update(reference=f"torchlens {version}", contest=name, seconds=seconds)
