"""The figures in the documents are those of the last benchmark."""

import json

import pytest

from benchmarks.figures import PLACES, RESULTS, ROOT, filled


@pytest.mark.parametrize("document", PLACES)
def test_documents_show_the_last_measured_figures(document: str) -> None:
    shown = (ROOT / document).read_text()
    assert shown == filled(document, json.loads(RESULTS.read_text())), "run `python -m benchmarks.figures`"
