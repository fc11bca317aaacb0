"""Drawing on a batch of 32 x 32 pictures: anti-aliased implicit shapes, colours, clutter, noise.

Every shape is a coverage in [0, 1] of shape `(N, 32, 32)`. Its parameters are floats or arrays that broadcast
with `(N, 1, 1)`, so one call draws the same shape with other parameters in every picture of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 32
Array = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]
Number = float | Array

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.96, 0.52, 0.08),
    "yellow": (0.97, 0.85, 0.15),
    "green": (0.15, 0.60, 0.20),
    "blue": (0.12, 0.30, 0.85),
    "purple": (0.52, 0.16, 0.70),
    "pink": (0.97, 0.50, 0.68),
    "white": (0.96, 0.96, 0.96),
    "grey": (0.52, 0.53, 0.55),
    "black": (0.08, 0.08, 0.10),
    "brown": (0.46, 0.27, 0.12),
    "tan": (0.82, 0.70, 0.48),
    "ginger": (0.88, 0.50, 0.18),
    "teal": (0.05, 0.58, 0.58),
}

_AXIS = (np.arange(SIDE, dtype=np.float32) + 0.5) * (2.0 / SIDE) - 1.0
GRID_X: Array = np.ascontiguousarray(np.broadcast_to(_AXIS[None, None, :], (1, SIDE, SIDE)))
GRID_Y: Array = np.ascontiguousarray(np.broadcast_to(_AXIS[None, :, None], (1, SIDE, SIDE)))


@dataclass(frozen=True)
class Frame:
    """A batch of coordinate systems: where each picture's pixels lie as the drawn thing sees them.

    Attributes:
        u: Coordinate to the thing's right, `(N, 32, 32)`.
        v: Coordinate downwards, `(N, 32, 32)`.
        pixel: Side of one pixel in these coordinates, `(N, 1, 1)`; edges are softened over it.
    """

    u: Array
    v: Array
    pixel: Array

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.pixel)

    def mirrored(self) -> Frame:
        """Return the frame folded at its vertical axis, so that one shape is drawn on both sides."""
        return Frame(np.abs(self.u), self.v, self.pixel)


def column(values: NDArray[np.generic] | list[float]) -> Array:
    """Return per-picture values `(N,)` as `(N, 1, 1)`, ready to be a shape's parameter."""
    return np.asarray(values, dtype=np.float32).reshape(-1, 1, 1)


def between(rng: np.random.Generator, n: int, low: float, high: float) -> Array:
    """Draw one uniform number per picture, `(N, 1, 1)`."""
    return column(rng.uniform(low, high, n))


def pick(values: Integers, table: list[float] | tuple[float, ...]) -> Array:
    """Look one number up per picture, `(N, 1, 1)`."""
    return column(np.asarray(table, dtype=np.float32)[values])


def place(
    rng: np.random.Generator,
    n: int,
    *,
    size: tuple[float, float] = (0.8, 1.0),
    shift: float = 0.12,
    turn: float = 0.15,
    flip: bool = True,
) -> Frame:
    """Draw a frame per picture: scale in `size`, centre off by `shift`, turned by up to `turn` radians.

    Args:
        rng: Source of all randomness.
        n: Number of pictures.
        size: Smallest and largest scale; 1 fills the picture.
        shift: Largest move along either axis, in half pictures.
        turn: Largest rotation either way, in radians.
        flip: Mirror half of the pictures left to right.
    """
    scale, angle = between(rng, n, *size), between(rng, n, -turn, turn)
    x, y = GRID_X - between(rng, n, -shift, shift), GRID_Y - between(rng, n, -shift, shift)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    side = column(rng.integers(0, 2, n) * 2.0 - 1.0) if flip else np.float32(1)
    return Frame((cos * x + sin * y) * side, cos * y - sin * x, (2.0 / SIDE) / scale)


def inside(distance: Array, pixel: Array) -> Array:
    """Turn a signed distance (negative inside) into coverage."""
    return np.asarray(np.clip(0.5 - distance / pixel, 0.0, 1.0))


def ellipse(frame: Frame, x: Number, y: Number, a: Number, b: Number | None = None) -> Array:
    """Cover an ellipse of half axes `a` and `b` (a disk of radius `a` when `b` is left out)."""
    b = a if b is None else b
    du, dv = (frame.u - x) / a, (frame.v - y) / b
    return inside((np.sqrt(du * du + dv * dv) - 1.0) * np.minimum(a, b), frame.pixel)


def ring(frame: Frame, x: Number, y: Number, radius: Number, width: Number) -> Array:
    """Cover a ring of middle radius `radius` and full width `width`."""
    du, dv = frame.u - x, frame.v - y
    return inside(np.abs(np.sqrt(du * du + dv * dv) - radius) - np.multiply(width, 0.5), frame.pixel)


def box(frame: Frame, x: Number, y: Number, a: Number, b: Number) -> Array:
    """Cover an upright box of half sides `a` and `b`."""
    return inside(np.maximum(np.abs(frame.u - x) - a, np.abs(frame.v - y) - b), frame.pixel)


def line(frame: Frame, x0: Number, y0: Number, x1: Number, y1: Number, width: Number) -> Array:
    """Cover a round-ended line of full width `width`."""
    dx, dy = np.subtract(x1, x0), np.subtract(y1, y0)
    along = np.clip(((frame.u - x0) * dx + (frame.v - y0) * dy) / (dx * dx + dy * dy + 1e-6), 0.0, 1.0)
    du, dv = frame.u - x0 - along * dx, frame.v - y0 - along * dy
    return inside(np.sqrt(du * du + dv * dv) - np.multiply(width, 0.5), frame.pixel)


def polygon(frame: Frame, *corners: tuple[Number, Number]) -> Array:
    """Cover a convex polygon whose corners are given clockwise as seen on the screen."""
    distance: Array | None = None
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        dx, dy = np.subtract(x1, x0), np.subtract(y1, y0)
        length = np.sqrt(dx * dx + dy * dy) + 1e-6
        edge = (dy / length) * (frame.u - x0) - (dx / length) * (frame.v - y0)
        distance = edge if distance is None else np.maximum(distance, edge)
    assert distance is not None
    return inside(distance, frame.pixel)


def petals(frame: Frame, count: Number, inner: Number, outer: Number, sharpness: Number) -> Array:
    """Cover a rosette of `count` petals reaching from radius `inner` to `outer`.

    Args:
        frame: Where to draw.
        count: Number of petals.
        inner: Radius between two petals.
        outer: Radius at a petal's tip.
        sharpness: 1 gives round petals, larger numbers thinner ones.
    """
    radius = np.sqrt(frame.u * frame.u + frame.v * frame.v)
    wave = np.abs(np.cos(np.arctan2(frame.v, frame.u) * np.multiply(count, 0.5)))
    reach = inner + np.subtract(outer, inner) * wave ** np.asarray(sharpness, dtype=np.float32)
    return inside(radius - reach, frame.pixel)


def wave(phase: Array) -> Array:
    """Return a smooth wave in [0, 1] of a phase in turns."""
    return np.asarray(0.5 + 0.5 * np.cos(phase * np.float32(2 * np.pi)))


def cells(rng: np.random.Generator, frame: Frame, count: int) -> tuple[Array, Array]:
    """Scatter `count` points and return the distances to the nearest and to the second nearest one."""
    n = len(frame)
    first = np.full((n, SIDE, SIDE), 9.0, dtype=np.float32)
    second = first.copy()
    for x, y in rng.uniform(-1.1, 1.1, (count, 2, n)):
        distance = np.hypot(frame.u - column(x), frame.v - column(y))
        np.minimum(second, np.maximum(first, distance), out=second)
        np.minimum(first, distance, out=first)
    return first, second


def clouds(rng: np.random.Generator, n: int, cells_per_side: int) -> Array:
    """Draw smooth random fields in [0, 1], `(N, 32, 32)`: a coarse random grid, made smooth between."""
    coarse = rng.random((n, cells_per_side + 1, cells_per_side + 1), dtype=np.float32)
    position = np.linspace(0, cells_per_side, SIDE, endpoint=False, dtype=np.float32)
    low = position.astype(np.int64)
    part = position - low
    rows = coarse[:, low] * (1 - part)[None, :, None] + coarse[:, low + 1] * part[None, :, None]
    return np.asarray(rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part, dtype=np.float32)


def choose(which: Integers, fields: tuple[Array, ...]) -> Array:
    """Take for every picture the field with its number, `(N, 32, 32)`."""
    return np.asarray(np.stack(fields)[which, np.arange(len(which))], dtype=np.float32)


def named(rng: np.random.Generator, names: tuple[str, ...], values: Integers, jitter: float = 0.06) -> Array:
    """Look up one named colour per picture and jitter its hue and brightness.

    Returns:
        Colours `(N, 3)` in [0, 1].
    """
    table = np.asarray([COLOURS[name] for name in names], dtype=np.float32)
    return varied(rng, table[values], jitter)


def varied(rng: np.random.Generator, colours: Array, jitter: float = 0.06) -> Array:
    """Jitter hue and brightness of colours `(N, 3)`."""
    bright = rng.normal(1.0, 1.5 * jitter, (len(colours), 1))
    shifted = colours * bright + rng.normal(0.0, jitter, colours.shape)
    return np.asarray(np.clip(shifted, 0.0, 1.0), dtype=np.float32)


def tint(rng: np.random.Generator, n: int, colour: tuple[float, float, float], jitter: float = 0.06) -> Array:
    """Return one colour for all pictures, jittered per picture, `(N, 3)`."""
    return varied(rng, np.tile(np.asarray(colour, dtype=np.float32), (n, 1)), jitter)


def any_colour(rng: np.random.Generator, n: int, low: float = 0.1, high: float = 0.9) -> Array:
    """Draw a colour per picture, `(N, 3)`, with every channel in `[low, high]`."""
    return rng.uniform(low, high, (n, 3)).astype(np.float32)


class Canvas:
    """A batch of pictures being painted, `(N, 3, 32, 32)` in [0, 1]."""

    def __init__(self, background: Array) -> None:
        """Start from one background colour per picture, `(N, 3)`."""
        self.pixels: Array = np.empty((len(background), 3, SIDE, SIDE), dtype=np.float32)
        self.pixels[:] = background[:, :, None, None]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.pixels)

    def paint(self, cover: Array, colour: Array) -> None:
        """Lay one colour per picture, `(N, 3)`, over the pictures where `cover` says so."""
        self.pixels += cover[:, None] * (colour[:, :, None, None] - self.pixels)

    def shade(self, light: Array) -> None:
        """Multiply brightness by a field `(N, 32, 32)`."""
        self.pixels *= light[:, None]

    def clutter(self, rng: np.random.Generator, strength: float, pieces: int = 2) -> None:
        """Put soft uneven light and a few faint blobs of any colour behind what is drawn next."""
        n = len(self)
        self.shade(1.0 + strength * (clouds(rng, n, 3) - 0.5))
        for _ in range(pieces):
            frame = place(rng, n, size=(0.2, 0.5), shift=1.0, turn=1.5)
            there = column(rng.random(n) < 0.6) * strength
            self.paint(np.maximum(np.abs(frame.u), np.abs(frame.v) * 1.5).__lt__(1.0) * there, any_colour(rng, n))

    def finish(self, rng: np.random.Generator, noise: float = 0.03) -> NDArray[np.uint8]:
        """Add light and sensor noise and return uint8 pictures `(N, 32, 32, 3)`."""
        n = len(self)
        light = rng.normal(1.0, 0.06, (n, 3, 1, 1)) * rng.uniform(0.85, 1.1, (n, 1, 1, 1))
        out = self.pixels * light.astype(np.float32)
        out += noise * rng.standard_normal(out.shape, dtype=np.float32)
        return (np.clip(out, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)
