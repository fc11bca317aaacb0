"""Composed scenes: one to three things of the picture world on a cluttered ground of 64 x 64, with their boxes.

A thing is painted on black and on white; what differs is what shows through, so that it can be laid over any ground.
Like the domains, the scenes of a split are a function of a fixed data seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clgym.errors import SettingError
from clgym.worlds import canvas, things
from clgym.worlds.canvas import SIDE, Array, Canvas, Integers
from clgym.worlds.pictures import Split

SCENE = 2 * SIDE
CLASSES: tuple[str, ...] = (
    "mug", "umbrella", "lamp", "chair", "key", "bell", "bottle", "hat", "clock", "house", "fish", "tree",
)  # fmt: skip
MOST = 3  # things in a scene: three of the four quarters

_PAINTERS = (*things.THINGS, things.SMALL[1], things.SMALL[6])  # the fish and the tree
_DATA_SEED = 60_117
_CHUNK = 64
_JITTER = 6  # pixels that a thing may stray from its quarter


@dataclass(frozen=True)
class Scenes:
    """Pictures with objects.

    Attributes:
        pictures: uint8 ``(N, 64, 64, 3)``.
        boxes: float32 ``(N, 3, 5)``: class, then centre x, centre y, width and height as shares of the picture; rows
            without an object have class -1 and zeros, and come last.
    """

    pictures: NDArray[np.uint8]
    boxes: NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.pictures)


def draw(split: Split, count: int) -> Scenes:
    """Draw the first scenes of a split; the first of many are those of few.

    Args:
        split: ``"train"`` or ``"test"``; their scenes come from different generators.
        count: Number of scenes.

    Raises:
        SettingError: The split is unknown, or no scene is asked for.

    >>> scenes = draw("test", 2)
    >>> scenes.pictures.shape, scenes.boxes.shape
    ((2, 64, 64, 3), (2, 3, 5))
    """
    if split not in ("train", "test"):
        raise SettingError(f"Expected split 'train' or 'test'; got {split!r}. Name one of the two.")
    if count < 1:
        raise SettingError(f"Expected at least 1 scene; got {count}. Ask for more.")
    chunks = -(-count // _CHUNK)
    parts = [
        compose(np.random.default_rng((_DATA_SEED, ("train", "test").index(split), k)), _CHUNK) for k in range(chunks)
    ]
    pictures = np.concatenate([part.pictures for part in parts])[:count]
    return Scenes(pictures, np.concatenate([part.boxes for part in parts])[:count])


def compose(rng: np.random.Generator, n: int) -> Scenes:
    """Draw ``n`` scenes; classes, numbers of things and places are uniform."""
    counts = rng.integers(1, MOST + 1, n)
    classes = rng.integers(0, len(CLASSES), (n, MOST))
    cover, colour = _sprites(rng, classes.ravel())
    quarters = rng.permuted(np.tile(np.arange(4), (n, 1)), axis=1)[:, :MOST]
    corners = np.stack([quarters % 2, quarters // 2], axis=-1) * SIDE + rng.integers(
        -_JITTER, _JITTER + 1, (n, MOST, 2)
    )
    corners = corners.clip(0, SCENE - SIDE)
    ground = _ground(rng, n)
    boxes = np.zeros((n, MOST, 5), np.float32)
    boxes[..., 0] = -1
    for i in range(n):
        for k in range(counts[i]):
            alpha, (x, y) = cover[i * MOST + k], corners[i, k]
            part = ground[i, :, y : y + SIDE, x : x + SIDE]
            part *= 1 - alpha
            part += colour[i * MOST + k]
            boxes[i, k] = classes[i, k], *_box(alpha, x, y)
    noisy = ground + 0.03 * rng.standard_normal(ground.shape, dtype=np.float32)
    pictures = (noisy.clip(0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)
    return Scenes(np.ascontiguousarray(pictures), boxes)


def _sprites(rng: np.random.Generator, classes: Integers) -> tuple[Array, Array]:
    """Paint a thing for each class: its coverage ``(N, 32, 32)``, and its colours ``(N, 3, 32, 32)`` times that."""
    n = len(classes)
    frame = canvas.place(rng, n, size=(0.62, 0.95), shift=0.04, turn=0.25)
    colours = canvas.any_colour(rng, n, 0.1, 1.0), canvas.tint(rng, n, things.DARK, 0.04)
    black, white = Canvas(np.zeros((n, 3), np.float32)), Canvas(np.ones((n, 3), np.float32))
    for art in (black, white):
        things.paint_each(art, classes, _PAINTERS, frame, *colours)
    through = white.pixels - black.pixels
    return 1 - through[:, 0], black.pixels


def _ground(rng: np.random.Generator, n: int) -> Array:
    """Paint ``n`` cluttered grounds, ``(N, 3, 64, 64)``: a small one with each pixel doubled."""
    art = Canvas(canvas.any_colour(rng, n, 0.35, 0.92))
    art.clutter(rng, 0.45)
    return np.ascontiguousarray(art.pixels.repeat(2, axis=2).repeat(2, axis=3))


def _box(cover: Array, x: int, y: int) -> tuple[float, float, float, float]:
    """Return the box around what is covered at least by half, as shares of the scene."""
    rows, columns = (np.flatnonzero((cover > 0.5).any(axis)) for axis in (1, 0))
    left, right, top, bottom = x + columns[0], x + columns[-1] + 1, y + rows[0], y + rows[-1] + 1
    return (left + right) / 2 / SCENE, (top + bottom) / 2 / SCENE, (right - left) / SCENE, (bottom - top) / SCENE
