"""Names of parametrised tests that are the same in every process, as parallel workers need them."""

import re


def stable(value: object) -> str:
    """The printed form of a value, without addresses and with sets in order."""
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(stable, value))) + "}"
    return re.sub(r" at 0x[0-9a-f]+", "", str(value) if isinstance(value, str) else repr(value))
