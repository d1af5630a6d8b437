"""Widths of texts, as pictures and pages count with."""

from __future__ import annotations

import json
from pathlib import Path

from fastrec.graph.draw.metrics import MAX_LENGTH, TEXT, TITLE, node_size, shortened, text_width, title_size
from fastrec.graph.draw.page import scripts
from tests.helpers.browser import document_of, json_in

TEXTS = (
    "conv2d_1_1",
    "1x64x112x112 (3.1 MB)",
    "@features.denseblock3",
    "WWWWW mmmm @@@@",
    "Żółć, βήτα",
    "名前 한국어",
    "",
)


def test_a_text_is_as_wide_as_its_characters() -> None:
    assert text_width("", TEXT) == 0
    assert text_width("WW", TITLE) > text_width("WW", TEXT) > text_width("ii", TEXT) > 0
    assert text_width("名", TEXT) > text_width("é", TEXT) > text_width("i", TEXT)


def test_long_texts_keep_their_ends() -> None:
    text = "a" * 40 + "b" * 40
    assert shortened(text) == "a" * (MAX_LENGTH // 2) + "…" + "b" * (MAX_LENGTH // 2)
    assert shortened("a" * MAX_LENGTH) == "a" * MAX_LENGTH


def test_sizes_are_even_and_grow_with_the_text() -> None:
    for lines in (("a",), ("a", "b" * 30), ("a" * 9, "b", "c")):
        width, height = node_size(lines, "box")
        assert width % 2 == height % 2 == 0 and node_size(lines, "ellipse")[0] >= width
    assert title_size(("a", "b"))[1] > title_size(("a",))[1] and title_size(())[0] < title_size(("a",))[0]


def test_no_text_is_wider_in_the_browser_than_the_table_says(tmp_path: Path) -> None:
    page = tmp_path / "widths.html"
    script = """
      const context = document.createElement("canvas").getContext("2d");
      const found = TEXTS.map((text) => [TITLE, TEXT].map((font) => {
        context.font = `${font.isBold ? 600 : 400} ${font.size}px "DejaVu Sans", Arial, sans-serif`;
        return [context.measureText(text).width, textWidth(text, font)];
      }));
      document.body.innerHTML = `<pre id="widths">${JSON.stringify(found)}</pre>`;
    """
    texts = f"const TEXTS = {json.dumps(TEXTS)};"
    page.write_text(f"<meta charset=utf-8><body><script>{scripts(['metrics.js'])}{texts}{script}</script>")
    found = json_in(document_of(page), "widths")
    for text, fonts in zip(TEXTS, found, strict=True):
        for (drawn, counted), font in zip(fonts, (TITLE, TEXT), strict=True):
            assert counted == text_width(text, font)
            assert drawn <= counted
