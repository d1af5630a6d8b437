"""The tables of attributes in the documents say what the classes say."""

from pathlib import Path

import pytest

from fastrec.graph import ModelHistory, Operation
from tests.graph.test_operation import BY_THEMSELVES, EXPECTED, MODEL_EXPECTED, TIMES

DOCUMENT = Path(__file__).parents[2] / "docs" / "graph.md"


def rows(mark: str) -> dict[str, str]:
    text = DOCUMENT.read_text().partition(f"<!-- {mark} -->\n")[2].partition(f"<!-- /{mark} -->")[0]
    cells = [line.strip("|").split("|", 1) for line in text.splitlines()[2:]]
    return {name.strip().strip("`"): meaning.strip() for name, meaning in cells}


def defined(kind: type, name: str) -> str:
    doc = getattr(kind, name).__doc__
    return " ".join(doc.split()).replace("``", "`")


@pytest.mark.parametrize(
    ("mark", "kind", "names"),
    [("operation", Operation, {*EXPECTED, *BY_THEMSELVES}), ("history", ModelHistory, {*MODEL_EXPECTED, *TIMES})],
)
def test_each_attribute_is_defined_as_in_the_class(mark: str, kind: type, names: set[str]) -> None:
    table = rows(mark)
    assert set(table) == names
    assert table == {name: defined(kind, name) for name in table}
