"""A page is one file that loads nothing, whose data can't become markup, and that is written over no other file."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrec._errors import RecordingExistsError, RecordingFileError
from fastrec._web.document import asset, document, json_in_html, write_page
from tests.helpers.browser import open_page

HOSTILE = "</script><img src=x onerror=alert(1)><!--\"'&\u2028\u2029"


def test_hostile_names_arrive_as_they_are_and_do_nothing(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_page(lambda: document(HOSTILE, body="<p></p>", styles=["p {}"], scripts=[""], data={HOSTILE: HOSTILE}), page)
    script = 'return [document.title, JSON.parse(document.getElementById("data").textContent), all("img").length]'
    opened = open_page(page, script)
    assert opened.problems == [] and opened.result[1:] == [{HOSTILE: HOSTILE}, 0]
    assert opened.result[0].strip("\u2028\u2029") == HOSTILE.strip("\u2028\u2029")


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda each: st.lists(each) | st.dictionaries(st.text(), each))
)
def test_json_comes_back_as_it_was_and_ends_no_script(data: object) -> None:
    text = json_in_html(data)
    assert json.loads(text) == data and not re.search("[<>&\u2028\u2029]", text)


def test_halves_of_characters_become_whole_ones() -> None:
    assert json.loads(json_in_html("a\ud800")) == "a\ufffd"


def test_a_page_asks_for_nothing(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    load = "const image = new Image(); image.src = 'https://example.org/x.png'; document.body.append(image);"
    write_page(lambda: document("t", body="", styles=[], scripts=[load], data=None), page)
    assert open_page(page, "await pause(100)").problems[0] == "img-src https://example.org/x.png"


def test_nothing_is_made_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")

    def make() -> str:
        raise AssertionError("made for nothing")

    with pytest.raises(RecordingExistsError, match="page.html' exists; give another path, or overwrite=True"):
        write_page(make, page)
    write_page(lambda: "new", page, overwrite=True)
    assert page.read_text() == "new"


def test_a_file_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.html"

    def make() -> str:
        page.write_text("quicker")
        return "slower"

    with pytest.raises(RecordingExistsError, match="page.html' exists"):
        write_page(make, page)
    assert page.read_text() == "quicker"


def test_a_page_that_can_not_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingFileError, match="no/page.html' can't be written: No such file or directory"):
        write_page(lambda: "", tmp_path / "no" / "page.html")


def test_what_others_wrote_comes_with_its_licence() -> None:
    assert "Leon Sorokin" in asset("vendor/uplot/LICENSE") and "uPlot" in asset("LICENSES.md")
