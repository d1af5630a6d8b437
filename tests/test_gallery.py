"""The gallery in the docs shows what is drawn now: models that need no other package are drawn again and compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.gallery import FOLDER, ROOMS, readme, run_ppo

SMALL = {"elman-rolled", "elman-unrolled", "early-exit"}
EXHIBITS = [exhibit for room in ROOMS for exhibit in room.exhibits]


@pytest.mark.parametrize("file", sorted(SMALL))
def test_pictures_are_those_that_make_gallery_draws(file: str) -> None:
    (room,) = [room for room in ROOMS if any(exhibit.file == file for exhibit in room.exhibits)]
    (exhibit,) = [exhibit for exhibit in room.exhibits if exhibit.file == file]
    assert room.make().draw(**exhibit.options).text == (FOLDER / f"{file}.svg").read_text()


def test_the_page_shows_every_picture_and_no_other() -> None:
    shown = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (FOLDER / "README.md").read_text())
    assert shown == [*(f"{exhibit.file}.svg" for exhibit in EXHIBITS), "ppo.png"]
    assert {path.name for path in FOLDER.iterdir() if path.suffix in (".svg", ".png")} == set(shown)
    assert (FOLDER / "README.md").read_text() == readme()


@pytest.mark.slow
def test_units_of_the_run_in_the_report_go_dormant() -> None:
    pytest.importorskip("stable_baselines3")
    statistics = run_ppo(4_000).statistics
    assert len(statistics) == 4
    early, late = (statistics["mlp_extractor.policy_net.3/relu"]["dormant_0.025"][part] for part in (0, -1))
    assert early < 0.3 < late


def test_pictures_are_small() -> None:
    assert (FOLDER / "ppo.png").stat().st_size < 100_000
    assert sum(Path(FOLDER / f"{exhibit.file}.svg").stat().st_size for exhibit in EXHIBITS) < 400_000
