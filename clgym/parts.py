"""Data made of parts of other data: picked, renumbered, mixed or changed, and read where they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from clgym.boxes import Boxed, renumbered, woven
from clgym.events import Boxes, Inputs, IntArray
from clgym.scenario import Data


class Parts:
    """Samples of one or several data sets as one set, in any order and with labels of its own.

    No input is copied or read before :meth:`batch`. Safe to call from several threads if the data are.

    Args:
        sources: The data sets.
        of: Which of them each sample is from, int64 ``(N,)``.
        rows: Its index there, int64 ``(N,)``.
        targets: Its label here, int64 ``(N,)``.
        change: What is done to the images of a batch after reading, uint8 ``(B, H, W, 3)`` to the same; its
            ``__name__`` stands for it in the fingerprint.

    Example:
        >>> from clgym.images import ArrayImages
        >>> shades = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1).repeat(3, axis=-1)
        >>> two = ArrayImages(shades, [0, 1, 2]), ArrayImages(9 - shades, [0, 0, 1])
        >>> both = Parts(two, [0, 1, 1], [2, 0, 2], [5, 6, 7])
        >>> both.batch(np.array([2, 1, 0]))[:, 0, 0, 0].tolist(), both.targets.tolist()
        ([7, 9, 2], [5, 6, 7])
    """

    def __init__(
        self,
        sources: Sequence[Data],
        of: npt.ArrayLike,
        rows: npt.ArrayLike,
        targets: npt.ArrayLike,
        change: Callable[[Any], Any] | None = None,
    ) -> None:
        """Hold the arguments."""
        self._sources, self._change = tuple(sources), change
        self._of: IntArray = np.asarray(of, dtype=np.int64)
        self._rows: IntArray = np.asarray(rows, dtype=np.int64)
        self.targets: IntArray = np.asarray(targets, dtype=np.int64)
        assert self._of.shape == self._rows.shape == self.targets.shape
        self.decodes = any(source.decodes for source in sources)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.targets)

    def batch(self, index: IntArray, rng: np.random.Generator | None = None) -> Inputs:
        """Return fresh inputs at ``index``; ``rng`` is handed on to the data, one after the other."""
        of, rows = self._of[index], self._rows[index]
        asked = np.unique(of).tolist()
        if len(asked) < 2:
            read = self._sources[asked[0] if asked else 0].batch(rows, rng)
        else:
            where = [np.flatnonzero(of == number) for number in asked]
            read = _woven([self._sources[n].batch(rows[at], rng) for n, at in zip(asked, where, strict=True)], where)
        changed: Inputs = read if self._change is None else self._change(read)
        return changed

    def boxes(self, index: IntArray, numbers: Sequence[IntArray]) -> Boxes:
        """Return the objects in samples, float32 ``(n, M, 5)``; all data are :class:`clgym.boxes.Boxed`.

        Args:
            index: Which samples, int64 ``(n,)``.
            numbers: For each data set what its classes are called here, int64; -1 hides the objects of a class.
        """
        of, rows = self._of[index], self._rows[index]
        where = [np.flatnonzero(of == number) for number in np.unique(of)]
        found = []
        for at in where:
            number = int(of[at[0]])
            source = self._sources[number]
            assert isinstance(source, Boxed)
            found.append(renumbered(source.boxes(rows[at]), numbers[number]))
        return woven(found, where)

    def fingerprint(self) -> str:
        """Return a sha256 over those of the data, which samples are used, their labels, and what is done to them."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        change = "" if self._change is None else self._change.__name__
        total = hashlib.sha256(f"{[source.fingerprint() for source in self._sources]} {change}".encode())
        for array in (self._of, self._rows, self.targets):
            total.update(array.tobytes())
        return total.hexdigest()


def _woven(parts: Sequence[Inputs], where: Sequence[IntArray]) -> Inputs:
    """Return one batch of several parts, each at its places."""
    if isinstance(parts[0], np.ndarray):
        out = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
        for part, at in zip(parts, where, strict=True):
            out[at] = part
        return out
    placed = sorted((i, text) for part, at in zip(parts, where, strict=True) for i, text in zip(at, part, strict=True))
    return tuple(text for _, text in placed)


def picked(data: Data, rows: npt.ArrayLike, targets: npt.ArrayLike) -> Parts:
    """Return the samples of one data set at ``rows`` ``(M,)`` with labels of their own."""
    index = np.asarray(rows, dtype=np.int64)
    return Parts([data], np.zeros_like(index), index, targets)


def changed(data: Data, change: Callable[[Any], Any]) -> Parts:
    """Return all samples of a data set, each batch changed after reading."""
    index = np.arange(len(data))
    return Parts([data], np.zeros_like(index), index, data.targets, change)
