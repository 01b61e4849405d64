"""The one exception for input that cannot be used: which file, what is wrong, what to do."""

from __future__ import annotations

from pathlib import Path


class InputError(ValueError):
    """Input that cannot be used.

    Its text is one line: ``<where>: <problem>. <remedy>``.

    Args:
        where: the file, folder or option at fault.
        problem: what is wrong with it.
        remedy: what the user can do.
    """

    def __init__(self, where: str | Path, problem: str, remedy: str = "") -> None:
        self.where, self.problem, self.remedy = str(where), problem, remedy
        text = f"{where}: {problem.rstrip('.')}."
        super().__init__(" ".join(f"{text} {remedy}".split()))

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        # Crosses process borders (data-loading workers) whole.
        return (InputError, (self.where, self.problem, self.remedy))
