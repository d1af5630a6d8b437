"""What a package index would show is checked before a release."""

import pytest

from fastrec._optional import DISTRIBUTION, __version__
from tools.release import NEEDED_CLASSIFIERS, NEEDED_URLS, problems_of

GOOD = "\n".join(
    [
        "Metadata-Version: 2.4",
        f"Name: {DISTRIBUTION}",
        f"Version: {__version__}",
        "Requires-Python: >=3.10",
        *(f"Project-URL: {name}, https://example.org" for name in sorted(NEEDED_URLS)),
        *(f"Classifier: {name}" for name in sorted(NEEDED_CLASSIFIERS)),
        "Classifier: Programming Language :: Python :: 3.10",
        "",
        "[pages](https://example.org/docs/index.md)\n```python\nx[1](y)\n```\n",
    ]
)


def test_good_metadata_has_no_problems() -> None:
    assert problems_of(GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (f"Name: {DISTRIBUTION}", "Name: fastrec", f"it is called fastrec {__version__}, not {DISTRIBUTION}"),
        (f"Version: {__version__}", "Version: 99", "it is called fastrec-torch 99, not"),
        ("(https://example.org/docs", "(docs", "the link to docs/index.md leads nowhere on a package index"),
        ("Project-URL: Issues", "Project-URL: Bugs", "there is no project URL 'Issues'"),
        ("Operating System :: MacOS", "Operating System :: BeOS", "no classifier 'Operating System :: MacOS'"),
        (">=3.10", ">=3.11", "Python 3.11 is required, and no classifier names it"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, problem: str) -> None:
    assert old in GOOD
    (found,) = problems_of(GOOD.replace(old, new))
    assert problem in found
