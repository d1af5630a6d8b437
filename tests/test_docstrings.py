"""The examples in the docstrings of every module are true."""

import doctest
import importlib
import types
from pathlib import Path

import pytest

from fastrec._errors import MissingExtraError

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "fastrec").rglob("*.py"))


def assert_examples_hold(module: types.ModuleType) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in doctest.DocTestFinder().find(module):
        runner.run(example, out=report.append)
    if report:
        raise AssertionError("".join(report))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstring_examples_hold(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    try:
        module = importlib.import_module(name)
    except MissingExtraError as missing:  # those of Ray run in `make test-ray`
        pytest.skip(str(missing))
    assert_examples_hold(module)


def test_an_example_that_does_not_hold_fails() -> None:
    module = types.ModuleType("example", ">>> 1 + 1\n3\n")
    with pytest.raises(AssertionError, match=r"Expected:\s+3\s+Got:\s+2"):
        assert_examples_hold(module)
