"""The one exception for input that cannot be used: which file, what is wrong, what to do."""

from __future__ import annotations

import unicodedata
from pathlib import Path

__all__ = ["InputError", "check_choice", "is_plain"]


def is_plain(character: str) -> bool:
    """Whether a character is no control character and no undecodable byte (a lone surrogate)."""
    return unicodedata.category(character) not in ("Cc", "Cs")


def check_choice(name: str, value: object, *known: object) -> None:
    """Reject a setting that is none of those known.

    Args:
        name: of the setting.
        value: that was given.
        known: what it can be.

    Raises:
        ValueError: if it is none of these.
    """
    if value not in known:
        *others, last = map(repr, known)
        raise ValueError(f"{name} is {', '.join(others)} or {last}, got {value!r}")


class InputError(ValueError):
    """Input that cannot be used.

    Its text is one line: ``<where>: <problem>. <remedy>``; names with control characters cannot make it more.

    Args:
        where: the file, folder or option at fault.
        problem: what is wrong with it.
        remedy: what the user can do.
    """

    def __init__(self, where: str | Path, problem: str, remedy: str = "") -> None:
        self.where, self.problem, self.remedy = str(where), problem, remedy
        text = f"{where}: {problem.rstrip('.')}."
        line = " ".join(f"{text} {remedy}".split())
        super().__init__("".join(c if is_plain(c) else c.encode("unicode_escape").decode("ascii") for c in line))

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        # Crosses process borders (data-loading workers) whole.
        return (InputError, (self.where, self.problem, self.remedy))
