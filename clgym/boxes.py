"""Objects in pictures: rows of class and box, and picture data that have them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from clgym.events import Boxes, Inputs, IntArray
from clgym.scenario import Data


@runtime_checkable
class Boxed(Data, Protocol):
    """Pictures with objects; ``targets`` holds the class of the largest object of each picture, or -1."""

    def boxes(self, index: IntArray) -> Boxes:
        """Return the objects of pictures, float32 ``(n, M, 5)``: class and box, see :class:`clgym.events.Train`."""

    def holds(self, labels: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Return which pictures have an object of one of these classes, bool ``(N,)``."""


class BoxedImages:
    """Any pictures, and the objects in them.

    Args:
        images: The pictures; their labels are not used.
        objects: Of all pictures, one after another, float32 ``(K, 5)``: class and box.
        counts: Number of objects of each picture, int64 ``(N,)``.

    Example:
        >>> from clgym.images import ArrayImages
        >>> pictures = ArrayImages(np.zeros((2, 4, 4, 3), np.uint8), [0, 0])
        >>> data = BoxedImages(pictures, [[7, 0.5, 0.5, 0.1, 0.1], [3, 0.5, 0.5, 0.9, 0.9]], [2, 0])
        >>> data.targets.tolist(), data.boxes(np.array([1, 0]))[:, :, 0].tolist(), data.holds([7]).tolist()
        ([3, -1], [[-1.0, -1.0], [7.0, 3.0]], [True, False])
    """

    def __init__(self, images: Data, objects: npt.ArrayLike, counts: npt.ArrayLike) -> None:
        """Hold the arguments, and name each picture by its largest object."""
        self._images, self.decodes = images, images.decodes
        self._objects: Boxes = np.asarray(objects, np.float32).reshape(-1, 5)
        self._counts: IntArray = np.asarray(counts, np.int64)
        assert len(self._counts) == len(images)
        assert self._counts.sum() == len(self._objects)
        self._starts = np.cumsum(self._counts) - self._counts
        self.targets: IntArray = np.full(len(images), -1, np.int64)
        owner, size = np.repeat(np.arange(len(images)), self._counts), self._objects[:, 3] * self._objects[:, 4]
        order = np.argsort(size, kind="stable")  # later writes win
        self.targets[owner[order]] = self._objects[order, 0]
        self._owner = owner

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.targets)

    def batch(self, index: IntArray, rng: np.random.Generator | None = None) -> Inputs:
        """Return fresh pictures; they are never augmented, which would move what is in them."""
        del rng
        return self._images.batch(index)

    def boxes(self, index: IntArray) -> Boxes:
        """Return the objects of pictures, float32 ``(n, M, 5)``, where M is the largest number, at least 1."""
        counts = self._counts[index]
        out = empty(len(index), int(counts.max(initial=1)))
        place = np.arange(out.shape[1]) < counts[:, None]
        out[place] = self._objects[(self._starts[index][:, None] + np.arange(out.shape[1]))[place]]
        return out

    def holds(self, labels: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Return which pictures have an object of one of these classes, bool ``(N,)``."""
        out = np.zeros(len(self), bool)
        out[self._owner[np.isin(self._objects[:, 0], labels)]] = True
        return out

    def fingerprint(self) -> str:
        """Return a sha256 over the pictures and their objects."""
        total = hashlib.sha256(self._images.fingerprint().encode())
        total.update(self._objects.tobytes())
        total.update(self._counts.tobytes())
        return total.hexdigest()


def empty(pictures: int, most: int) -> Boxes:
    """Return boxes of pictures without an object, ``(pictures, most, 5)``."""
    out = np.zeros((pictures, most, 5), np.float32)
    out[..., 0] = -1
    return out


def woven(parts: Sequence[Boxes], where: Sequence[IntArray]) -> Boxes:
    """Return the boxes of one batch from those of its parts, each at its places."""
    out = empty(sum(map(len, parts)), max(part.shape[1] for part in parts))
    for part, at in zip(parts, where, strict=True):
        out[at, : part.shape[1]] = part
    return out


def renumbered(boxes: Boxes, numbers: IntArray) -> Boxes:
    """Return boxes ``(n, M, 5)`` whose class ``c`` is called ``numbers[c]``; -1 hides the object.

    >>> renumbered(np.array([[[0, 0.1, 0.1, 0, 0], [1, 0.5, 0.5, 0.2, 0.2]]], np.float32), np.array([-1, 4]))[..., 0]
    array([[ 4., -1.]], dtype=float32)
    """
    out = boxes.copy()
    there = boxes[..., 0] >= 0
    out[..., 0][there] = numbers[boxes[..., 0][there].astype(np.int64)]
    gone = out[..., 0] < 0
    out[gone] = (-1, 0, 0, 0, 0)
    return np.take_along_axis(out, np.argsort(gone, axis=1, kind="stable")[..., None], axis=1)


def holds(data: Data, labels: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return which samples are of one of these classes, or have an object of one, bool ``(N,)``."""
    return data.holds(labels) if isinstance(data, Boxed) else np.isin(data.targets, labels)


def labels_of(data: Data, kept: npt.NDArray[np.bool_]) -> IntArray:
    """Return the classes of some samples or of the objects in them, int64 ascending."""
    if not isinstance(data, Boxed):
        return np.unique(data.targets[kept])
    found = np.unique(data.boxes(np.flatnonzero(kept))[..., 0])
    return found[found >= 0].astype(np.int64)
