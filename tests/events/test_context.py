"""The context of an event, as the documents describe it."""

import re
from pathlib import Path

from fastrec import RecordContext


def test_the_page_on_contexts_has_every_field_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "context.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(name for name, value in vars(RecordContext).items() if isinstance(value, property))
