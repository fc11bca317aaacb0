"""Reads items ahead of their use in threads, so that image decoding overlaps training."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Lookahead(Generic[T]):
    """Items of a sequence, each read once, up to ``depth`` of them before they are asked for.

    Memory is bounded by ``depth`` items whatever the length.

    Args:
        read: Returns the item at a position; called from several threads.
        next_position: The position after a given one that is worth reading ahead, or ``None``.
        depth: How many items to hold ready.
    """

    def __init__(self, read: Callable[[int], T], next_position: Callable[[int], int | None], depth: int = 4) -> None:
        """Start no thread yet."""
        self._read, self._next, self._depth = read, next_position, depth
        self._pool: ThreadPoolExecutor | None = None
        self._ready: dict[int, Future[T]] = {}

    def get(self, position: int) -> T:
        """Return the item at ``position`` and start reading those after it; what its reading raises is raised here."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(min(self._depth, os.cpu_count() or 1), "clgym-decode")
        future = self._ready.pop(position, None) or self._pool.submit(self._read, position)
        wanted: set[int] = set()
        ahead = self._next(position)
        while ahead is not None and len(wanted) < self._depth:
            wanted.add(ahead)
            if ahead not in self._ready:
                self._ready[ahead] = self._pool.submit(self._read, ahead)
            ahead = self._next(ahead)
        for stale in self._ready.keys() - wanted:
            self._ready.pop(stale).cancel()
        return future.result()

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
        self._ready.clear()
