"""What an integration says where its framework is missing, or does not fit the recorder."""

from __future__ import annotations

from fastrec._errors import MissingExtraError, OptionError
from fastrec.session.recorder import Recorder


def missing(package: str, extra: str) -> MissingExtraError:
    """The error of a framework that is not installed."""
    return MissingExtraError(f"{package} is needed here and not installed; pip install 'fastrec[{extra}]'")


def check_autoreset(rec: Recorder, mode: str | None, who: str) -> None:
    """Raise OptionError where environments reset in another way than the recorder was told."""
    told = rec.options.autoreset
    if told == mode:
        return
    how = {
        "next_step": "reset in the step after an episode's last one (autoreset mode NEXT_STEP)",
        "same_step": "reset in the same step that ends an episode",
        None: "don't reset by themselves",
    }[mode]
    remedy = f"open the recorder with autoreset={mode!r}" if mode else "open the recorder without autoreset="
    raise OptionError(f"{who} {how}, and the recorder has autoreset={told!r}; {remedy}")
