"""The op table agrees with torch's own database of samples."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_table_agrees_with_torchs_samples() -> None:
    # A process of its own, for the database (which needs the package expecttest) freezes torch's global flags.
    script = Path(__file__).parents[1] / "helpers" / "op_db_check.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["wrong"] == {}
    assert report["functions"] > 500 and report["calls"] > 50_000
