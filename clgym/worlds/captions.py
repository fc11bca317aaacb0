"""Captioned pictures for pre-training: the same attributes as in the domains, in other combinations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clgym.worlds import nature, things, views
from clgym.worlds.canvas import Integers
from clgym.worlds.tables import KINDS, Kind
from clgym.worlds.things import Pictures, Values

CHUNK = 64
_OPENINGS = ("a photo of {}", "a picture of {}", "{}", "a photo of {}")

_DRAWERS = {
    drawer.__name__: drawer
    for drawer in (
        things.aircraft,
        things.objects,
        things.small_objects,
        things.cars,
        nature.textures,
        views.satellite,
        nature.flowers,
        nature.dishes,
        nature.pets,
        views.scenes,
    )
}


def paint(kind: Kind, rng: np.random.Generator, values: Values) -> Pictures:
    """Draw pictures of a kind with these attribute values, `(N, 32, 32, 3)` uint8.

    Pictures are drawn in small pieces, which keeps the work in the processor's cache.
    """
    n = len(next(iter(values.values())))
    drawer = _DRAWERS[kind.name]
    pieces = [drawer(rng, {k: v[at : at + CHUNK] for k, v in values.items()}) for at in range(0, n, CHUNK)]
    return np.concatenate(pieces)


def held_out(kind: Kind, combinations: Integers) -> NDArray[np.bool_]:
    """Say which combinations `(N, attributes)` are one of the kind's classes."""
    classes = kind.combinations()
    match = (combinations[:, None] == classes[None]) | (classes[None] == -1)
    return np.asarray(match.all(-1).any(-1))


def sample_combinations(kind: Kind, rng: np.random.Generator, n: int) -> Integers:
    """Draw `n` combinations, uniformly among those that are no class of the domain."""
    sizes = [len(values) for _, values in kind.attributes]
    grid = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1).reshape(-1, len(sizes))
    allowed = grid[~held_out(kind, grid)]
    return allowed[rng.integers(0, len(allowed), n)]


def captioned(kind: Kind, rng: np.random.Generator, n: int) -> tuple[Pictures, list[str]]:
    """Draw `n` pictures of a kind with a caption each; no combination is a class of the kind's domain.

    Returns:
        Pictures `(n, 32, 32, 3)` uint8 and their captions.
    """
    combinations = sample_combinations(kind, rng, n)
    names = [name for name, _ in kind.attributes]
    pictures = paint(kind, rng, {name: combinations[:, i] for i, name in enumerate(names)})
    formats, openings = rng.integers(0, len(kind.captions), n), rng.integers(0, len(_OPENINGS), n)
    captions = []
    for row, form, opening in zip(combinations, formats, openings, strict=True):
        words = {name: values[i] for (name, values), i in zip(kind.attributes, row, strict=True)}
        captions.append(_OPENINGS[opening].format(kind.captions[form].format(**words)))
    return pictures, captions


def corpus(rng: np.random.Generator, n: int) -> tuple[Pictures, list[str]]:
    """Draw about `n` captioned pictures, equally many of every kind that has attributes."""
    drawn = [kind for kind in KINDS if kind.attributes]
    parts = [captioned(kind, rng, n // len(drawn)) for kind in drawn]
    return np.concatenate([p for p, _ in parts]), [caption for _, captions in parts for caption in captions]
