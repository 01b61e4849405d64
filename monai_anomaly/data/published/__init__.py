"""Readers of the published benchmark sets."""

from __future__ import annotations

from .base import Pictures, Problem, PublishedSet, RemoteFile

__all__ = ["PUBLISHED_SETS", "Pictures", "Problem", "PublishedSet", "RemoteFile"]

PUBLISHED_SETS: dict[str, type[PublishedSet]] = {}
