"""How a request says which demonstrations a policy is to be shown: by their number, or by their ids."""

from __future__ import annotations

import re
from typing import Final

from apprentice.demonstrations.format import DemonstrationError

LONGEST: Final = 1000
"""Characters of a request with the most ids, and some to spare."""
_ASKED: Final = re.compile(
    r"[0-9]{1,3}|ids:[0-9]{1,9}(,[0-9]{1,9}){0,63}|#[0-9]{1,9}(,#[0-9]{1,9}){0,63}"
)


def parse_context(asked: str) -> int | tuple[int, ...]:
    """Return what a request means: how many demonstrations, or the numbers of these.

    Raises DemonstrationError.
    """
    if not _ASKED.fullmatch(asked):
        raise DemonstrationError(
            "context: expected how many demonstrations to show, as in 2, or which, as in ids:7,9 (or #7,#9); "
            f"found {asked!r}"
        )
    numbers = tuple(int(number) for number in re.findall("[0-9]+", asked))
    return numbers[0] if asked.isdecimal() else numbers
