"""Globs of addresses and sites, in which ``*`` stays within one level and ``**`` crosses levels, as in paths.

    "h.*" in AddressGlobs(("h.*",))     # the blocks h.0, h.1, ..., and not what is in them
    AddressGlobs(("h.**",))             # all that is in them as well
    AddressGlobs(("**.attn",))          # attn at any depth, the first included

A level ends at a dot, or at the slash between a module and an op in a site. A star that crossed dots would take every
part of every block where the blocks are meant, and nothing would say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from fastrec._errors import did_you_mean
from fastrec.predicates._globs import Globs

_TOKENS = re.compile(r"\*\*+|\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)

_LEVEL_ENDS = ("", ".", "/")


class AddressGlobs(Globs):
    """Globs that are matched against module addresses, entries or sites; see the module's docstring."""

    __slots__ = ()

    @staticmethod
    def translate(pattern: str) -> str:
        return _translate(pattern)


@lru_cache(maxsize=1024)
def _translate(pattern: str) -> str:
    tokens = _TOKENS.findall(pattern)
    parts: list[str] = []
    position = 0
    while position < len(tokens):
        token = tokens[position]
        before = tokens[position - 1] if position else ""
        after = tokens[position + 1] if position + 1 < len(tokens) else ""
        fills_level = before in _LEVEL_ENDS and after in _LEVEL_ENDS
        if token.startswith("**"):
            if fills_level and after == ".":
                parts.append(r"(?:.*\.)?")
                position += 1  # the dot is part of it, because there may be no level at all
            else:
                parts.append(".+" if fills_level and before else ".*")
        elif token == "*":
            parts.append("[^./]*")  # of no characters too: the address of a root without a name is ""
        elif token == "?":
            parts.append("[^./]")
        elif len(token) > 1:
            characters = token[1:-1].replace("\\", r"\\")
            negated = characters.startswith("!")
            characters = re.sub(r"([\[\]^&~|])", r"\\\1", characters[1:] if negated else characters)
            parts.append(f"(?![./])[{'^' if negated else ''}{characters}]")
        else:
            parts.append(re.escape(token))
        position += 1
    return rf"(?s:{''.join(parts)})\Z"


def is_glob(text: str) -> bool:
    """Whether a text has characters of globs."""
    return any(character in text for character in "*?[")


def crossing(pattern: str) -> str | None:
    """The pattern with stars that cross levels; None where it has no star that could."""
    crossed = re.sub(r"(?<!\*)\*(?!\*)", "**", pattern)
    return None if crossed == pattern else crossed


def nearest(pattern: str, names: Iterable[str]) -> str:
    """A hint at the end of a message, where a pattern matched none of these names."""
    names = sorted(names)
    crossed = crossing(pattern)
    matching = [] if crossed is None else [name for name in names if name and name in AddressGlobs((crossed,))]
    if not matching:
        return did_you_mean(pattern, names)
    more = f" and {len(matching) - 1} more" if len(matching) > 1 else ""
    return f"'*' stays within one level, and '**' crosses levels: {crossed!r} takes {matching[0]!r}{more}"
