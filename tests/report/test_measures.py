"""Measures have names, definitions and sources, and every document says the same of them."""

from pathlib import Path

import pytest

from fastrec._errors import RecordKeyError
from fastrec.report import MEASURES
from fastrec.report.measures import PLOTS, definition_of

PAGE = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text().replace("\\|", "|")


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_the_document_has_the_definition_and_the_source(measure: object) -> None:
    assert f"| `{measure.name}` | {measure.definition}" in PAGE  # type: ignore[attr-defined]
    assert measure.source in PAGE and measure.plot in PLOTS  # type: ignore[attr-defined]


def test_names_are_different() -> None:
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)


def test_an_unknown_measure_names_the_close_ones() -> None:
    with pytest.raises(RecordKeyError, match="there is no measure 'zero'; did you mean 'zeros'"):
        definition_of("zero")
