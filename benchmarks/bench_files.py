"""Whether what ``python -m benchmarks.files`` times writes the right values; a few passes of each, and no timing."""

from functools import partial
from pathlib import Path

import pytest

from benchmarks import files

FEW = {
    "policy": partial(files.policy, rounds=1, passes=20, warm=5),
    "large": partial(files.large, rounds=1, count=3),
    "million": partial(files.million, passes=200),
}


@pytest.mark.parametrize("name", FEW)
def test_what_is_timed_is_right(name: str, tmp_path: Path) -> None:
    rows = FEW[name](tmp_path)
    assert rows and all(len(row) == 3 for row in rows)
    assert not list(tmp_path.glob("*.tmp"))
