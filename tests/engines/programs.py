"""Programs that a test runs in an interpreter of their own: what forks, or joins a group of processes."""

import subprocess
import sys
import textwrap
from pathlib import Path

TESTS = Path(__file__).parent.parent

PRELUDE = """
import os, sys, warnings
import torch
from torch import nn
from fastrec import FastrecError, Recorder, record
from fastrec.predicates import module_type
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
x = torch.randn(2, 4)
"""


def run(code: str) -> list[str]:
    """What a program prints that is run by an interpreter of its own."""
    script = PRELUDE + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-W", "error::fastrec.FastrecWarning", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=TESTS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
