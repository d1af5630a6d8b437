"""Whether environments reset in the way that the recorder was told.

A vectorised environment either spends a step of its own on a reset, or resets within the step that ends an episode
(Gymnasium's ``AutoresetMode``). The recorder can't see which, and finds the episodes' boundaries by its ``autoreset=``.
So each integration compares the two before the first step.
"""

from __future__ import annotations

from fastrec._errors import OptionError
from fastrec.session.recorder import Recorder

_DESCRIPTIONS = {
    "next_step": "reset in the step after the last one of an episode (AutoresetMode.NEXT_STEP)",
    "same_step": "reset in the same step that ends an episode, or are reset by your loop before the next one",
    None: "don't reset by themselves",
}


def check_autoreset(rec: Recorder, mode: str | None, environments: str) -> None:
    """Raise OptionError where the recorder's ``autoreset=`` is not the ``mode`` of these environments."""
    option = rec.options.autoreset
    if option != mode:
        remedy = f"with autoreset={mode!r}" if mode else "without autoreset="
        raise OptionError(
            f"{environments} {_DESCRIPTIONS[mode]}, but the recorder has autoreset={option!r}; "
            f"open the recorder {remedy}"
        )
