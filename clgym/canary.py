"""Traces of erased samples in what an agent keeps: their ids, their bytes, their features.

Ids are small numbers, which anything may be. So a stream that is played to look for traces shows *marked* ids, a number
each that nothing else has; agents take ids as they come and do the same with either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from clgym.events import Array, Erase, EraseRequest, Event, IntArray, Train

MARK, STRIDE = 1 << 50, 7_919  # a mark is MARK + STRIDE * id
COPY = 0.9999  # cosine from which a stored vector is a copy of a feature or of pixels
LIKE = 0.95  # cosine from which a stored vector is like a class's mean
LEAST = 8  # values below which a vector may be like another by chance


@dataclass(frozen=True, slots=True)
class Trace:
    """Something of erased samples in a state.

    Attributes:
        kind: ``"id"``, ``"bytes"``, ``"feature"``, ``"pixels"`` or ``"mean"``: a vector in the direction of the mean of
            an erased class's features, as a prototype has.
        where: Name of the entry of the state.
        count: Number of samples, of vectors for ``"mean"``.
    """

    kind: str
    where: str
    count: int


def marked(event: Event) -> Event:
    """Return an event with marked ids."""
    match event:
        case Train():
            return replace(event, ids=mark(event.ids))
        case EraseRequest():
            ids = mark(event.ids)
            scope = tuple(map(str, ids.tolist())) if event.kind == "sample" else event.scope
            return replace(event, ids=ids, scope=scope)
        case Erase():
            parts = {name: getattr(event, name) for name in ("forget", "retain")}
            return replace(event, **{name: part and replace(part, ids=mark(part.ids)) for name, part in parts.items()})
    return event


def mark(ids: IntArray) -> IntArray:
    """Return the marks of ids, int64.

    >>> mark(np.array([0, 1])).tolist()
    [1125899906842624, 1125899906850543]
    """
    return MARK + STRIDE * ids


def traces(
    state: Mapping[str, Any],
    ids: IntArray,
    images: Array,
    labels: IntArray,
    features: Mapping[str, tuple[Array, Array]],
) -> list[Trace]:
    """Return what a state holds of erased samples.

    Args:
        state: As :meth:`clgym.agent.Agent.state_dict` returns it, after marked events.
        ids: Their ids, without marks.
        images: Their inputs, uint8 ``(n, H, W, 3)``.
        labels: Their classes, int64 ``(n,)``.
        features: By name of the space, features of the erased samples ``(n, d)``, and of as many others.
    """
    found: list[Trace] = []
    wanted = set(mark(ids).tolist())
    for name, value in state.items():
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        if isinstance(array, np.ndarray):
            found += _in_array(name, array, wanted, images, labels, features)
        elif count := sum(_mentions(value, number) for number in wanted):
            found.append(Trace("id", name, count))
    return found


def _in_array(
    name: str,
    array: Array,
    wanted: set[int],
    images: Array,
    labels: IntArray,
    features: Mapping[str, tuple[Array, Array]],
) -> list[Trace]:
    found = []
    if np.issubdtype(array.dtype, np.integer) and array.dtype.itemsize == 8:
        found.append(Trace("id", name, len(wanted & set(array.ravel().tolist()))))
    raw = np.ascontiguousarray(array).tobytes()
    found.append(Trace("bytes", name, sum(image.tobytes() in raw for image in images)))
    if np.issubdtype(array.dtype, np.floating) and array.size:
        pixels = images.reshape(len(images), -1).astype(np.float32)
        found.append(Trace("pixels", name, _copies(array, pixels - pixels.mean(axis=1, keepdims=True), centre=True)))
        for gone, others in features.values():
            found.append(Trace("feature", name, _copies(array, gone)))
            found.append(Trace("mean", name, _means(array, gone, labels, others)))
    return [trace for trace in found if trace.count]


def _mentions(value: Any, number: int) -> bool:
    """Whether a JSON value holds a number, as a number or a text."""
    if isinstance(value, dict):
        return any(_mentions(part, number) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return any(_mentions(part, number) for part in value)
    return str(value) == str(number)


def _rows(array: Array, length: int) -> Array | None:
    """Return an array's vectors of a length, ``(m, length)``, taken along any axis; ``None`` if there are none."""
    if length < LEAST:
        return None
    parts = [
        np.moveaxis(array, axis, -1).reshape(-1, length) for axis in range(array.ndim) if array.shape[axis] == length
    ]
    if array.ndim > 1 and array[0].size == length and length not in array.shape[1:]:
        parts.append(array.reshape(-1, length))
    return np.concatenate(parts).astype(np.float32) if parts else None


def _unit(vectors: Array) -> Array:
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    out: Array = vectors / np.where(norm > 0, norm, 1)
    return out


def _copies(array: Array, vectors: Array, centre: bool = False) -> int:
    """Return how many vectors have a copy in an array, up to a factor (and, centred, a constant)."""
    rows = _rows(array, vectors.shape[1])
    if rows is None:
        return 0
    if centre:
        rows = rows - rows.mean(axis=1, keepdims=True)
    return int(((_unit(rows) @ _unit(vectors).T).max(axis=0) > COPY).sum())


def _means(array: Array, gone: Array, labels: IntArray, others: Array) -> int:
    """Return how many vectors of an array point to the mean of an erased class's features.

    What all features have in common says nothing, so their mean is taken off both sides.
    """
    rows = _rows(array, gone.shape[1])
    if rows is None:
        return 0
    middle = np.concatenate([gone, others]).mean(axis=0)
    means = np.stack([gone[labels == c].mean(axis=0) for c in np.unique(labels)])
    sized = _unit(rows) * np.linalg.norm(means, axis=1).mean()
    return int(((_unit(sized - middle) @ _unit(means - middle).T).max(axis=1) > LIKE).sum())
