"""Drawers of what is seen from afar: satellite ground and scenes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from clgym.worlds import canvas
from clgym.worlds.canvas import Array, Canvas, Frame, Integers

Values = Mapping[str, Integers]
Pictures = NDArray[np.uint8]

# Rows: green, dark, brown, tan, grey, blue.
_GROUNDS = (
    (0.38, 0.60, 0.25),
    (0.08, 0.28, 0.14),
    (0.42, 0.29, 0.17),
    (0.80, 0.70, 0.48),
    (0.56, 0.56, 0.55),
    (0.10, 0.28, 0.50),
)
# Rows: empty, bend, road, rows, dots, blocks, slabs.
_MARKS = (
    (0, 0, 0),
    (0.15, 0.36, 0.58),
    (0.75, 0.74, 0.72),
    (0.62, 0.58, 0.28),
    (0.13, 0.36, 0.15),
    (0.72, 0.38, 0.28),
    (0.88, 0.90, 0.93),
)
# Rows: sunny, sunset, night, misty.
_SKY_HIGH = (
    (0.32, 0.60, 0.95),
    (0.50, 0.25, 0.50),
    (0.03, 0.04, 0.16),
    (0.75, 0.77, 0.80),
)
_SKY_LOW = (
    (0.75, 0.88, 0.98),
    (0.98, 0.58, 0.22),
    (0.10, 0.12, 0.30),
    (0.86, 0.87, 0.88),
)
_SUN = (
    (1.0, 0.97, 0.7),
    (1.0, 0.85, 0.35),
    (0.95, 0.95, 0.85),
    (0.9, 0.9, 0.9),
)
_LIGHT = (
    (1.0, 1.0, 1.0),
    (0.85, 0.55, 0.45),
    (0.22, 0.25, 0.42),
    (0.80, 0.82, 0.85),
)
# Rows: beach, mountain, desert, forest, city, meadow, lake.
_GROUND = (
    (0.15, 0.45, 0.70),
    (0.40, 0.45, 0.38),
    (0.90, 0.74, 0.42),
    (0.20, 0.36, 0.15),
    (0.45, 0.45, 0.47),
    (0.40, 0.68, 0.22),
    (0.16, 0.38, 0.58),
)
_UPRIGHT = (
    (0.2, 0.5, 0.7),
    (0.45, 0.42, 0.48),
    (0.85, 0.66, 0.36),
    (0.10, 0.32, 0.14),
    (0.40, 0.38, 0.42),
    (0.3, 0.5, 0.2),
    (0.15, 0.35, 0.18),
)
_DETAIL = (
    (0.95, 0.97, 1.0),
    (0, 0, 0),
    (0.75, 0.55, 0.28),
    (0.30, 0.20, 0.12),
    (0.95, 0.88, 0.45),
    (0.90, 0.45, 0.60),
    (0.75, 0.85, 0.92),
)


def satellite(rng: np.random.Generator, values: Values) -> Pictures:
    """Draw ground from above."""
    n = len(values["ground"])
    frame = canvas.place(rng, n, size=(0.9, 1.1), shift=0.4, turn=1.5)
    art = Canvas(canvas.varied(rng, np.asarray(_GROUNDS)[values["ground"]], 0.035))
    grain = canvas.clouds(rng, n, 5) + 0.6 * canvas.clouds(rng, n, 14)
    art.shade(1.0 + 0.35 * (grain - 0.8))
    bend = np.abs(frame.u + 0.35 * np.sin(frame.v * 3.0 + canvas.between(rng, n, 0, 6))) - canvas.between(
        rng, n, 0.1, 0.18
    )
    road = np.minimum(np.abs(frame.u) - 0.1, np.abs(frame.v + frame.u * 0.3 - 0.5) - 0.05)
    p, q = frame.u * 2.2, frame.v * 2.2
    rows = np.clip(3.0 * canvas.wave(p * 1.3) - 1.0, 0.0, 1.0)
    dots = np.clip(5.0 * canvas.wave(p * 1.1) * canvas.wave(q * 1.1) - 1.8, 0.0, 1.0)
    blocks = ((p * 1.1) % 1 > 0.4) * ((q * 1.1) % 1 > 0.4) * 1.0
    slabs = ((p * 0.55) % 1 > 0.35) * ((q * 0.4) % 1 > 0.3) * 1.0
    fields = (
        np.zeros_like(rows),
        canvas.inside(bend, frame.pixel),
        canvas.inside(road, frame.pixel),
        rows,
        dots,
        blocks,
        slabs,
    )
    art.paint(canvas.choose(values["mark"], fields), canvas.varied(rng, np.asarray(_MARKS)[values["mark"]], 0.05))
    return art.finish(rng, 0.035)


def _land(rng: np.random.Generator, frame: Frame, values: Integers, horizon: Array) -> tuple[Array, Array]:
    """Return what stands at the horizon and what pattern lies on the ground."""
    n = len(values)
    u, v = frame.u, frame.v
    ridge = horizon - 0.75 + np.abs(((u * 1.1 + canvas.between(rng, n, 0, 1)) % 1.2) - 0.6) * 1.1
    roofs = horizon - 0.25 - 0.5 * np.abs(np.sin(np.floor(u * 5.0) * canvas.between(rng, n, 2.0, 9.0)))
    crowns = horizon - 0.55 - 0.25 * np.abs(np.sin(u * 7.0 + canvas.between(rng, n, 0, 3)))
    dunes = horizon - 0.12 - 0.12 * np.sin(u * 3.0 + canvas.between(rng, n, 0, 6))
    flat = np.broadcast_to(horizon, u.shape)
    tops = (flat, ridge, dunes, crowns, roofs, flat - 0.04, flat - 0.1)
    top = canvas.choose(values, tuple(np.broadcast_to(t, u.shape) for t in tops))
    stand = canvas.inside(top - v, frame.pixel) * (v < horizon + 0.02)
    quiet = np.zeros_like(u)
    surf = (canvas.wave(v * 3.0 + 0.15 * np.sin(u * 4.0)) > 0.8) * (v < horizon + 0.4)
    stripes = canvas.wave(u / (v - horizon + 0.35) * 0.9)
    trunks = canvas.wave(u * 3.0) > 0.8
    tufts = canvas.clouds(rng, n, 15) > 0.62
    glints = (canvas.wave(v * 4.5) > 0.75) * (canvas.clouds(rng, n, 10) > 0.4)
    windows = (canvas.wave(u * 5.0) > 0.6) * (canvas.wave(v * 5.0) > 0.5)
    fields = (surf, quiet, 0.5 * stripes, trunks, windows, tufts, glints)
    return stand, canvas.choose(values, tuple(np.asarray(f, dtype=np.float32) for f in fields))


def scenes(rng: np.random.Generator, values: Values) -> Pictures:
    """Draw places under a sky."""
    place, time = values["place"], values["time"]
    n = len(place)
    frame = canvas.place(rng, n, size=(0.95, 1.05), shift=0.1, turn=0.05)
    horizon = canvas.between(rng, n, -0.02, 0.25)
    art = Canvas(canvas.varied(rng, np.asarray(_SKY_HIGH)[time], 0.03))
    art.paint(
        np.clip((frame.v + 1.0) / (horizon + 1.0), 0.0, 1.0),
        canvas.varied(rng, np.asarray(_SKY_LOW)[time], 0.03),
    )
    sun = canvas.ellipse(
        frame, canvas.between(rng, n, -0.7, 0.7), horizon - canvas.pick(time, (0.75, 0.22, 0.7, 3.0)), 0.17
    )
    art.paint(sun, canvas.varied(rng, np.asarray(_SUN)[time], 0.02))
    stand, fields = _land(rng, frame, place, horizon)
    below = canvas.inside(horizon - frame.v, frame.pixel)
    glow = np.asarray(_LIGHT)[time] * (1 - 0.35 * (time == 3)[:, None]) + 0.28 * (time == 3)[:, None]
    art.paint(below, canvas.varied(rng, np.asarray(_GROUND)[place] * glow, 0.03))
    art.paint(stand, canvas.varied(rng, np.asarray(_UPRIGHT)[place] * glow, 0.03))
    snow = stand * (frame.v < horizon - 0.45) * (place == 1)[:, None, None]
    art.paint(snow.astype(np.float32), (0.95 * glow * np.ones_like(glow)).astype(np.float32))
    sand = below * (frame.v > horizon + 0.42) * (place == 0)[:, None, None]
    art.paint(sand.astype(np.float32), canvas.varied(rng, np.asarray([0.93, 0.83, 0.58]) * glow, 0.03))
    lit = np.where((place == 4)[:, None], 1.0, glow)
    where = np.where(
        (place == 4)[:, None, None],
        stand,
        np.where((place == 3)[:, None, None], np.maximum(stand, below), below - sand),
    )
    art.paint((fields * where * 0.8).astype(np.float32), canvas.varied(rng, np.asarray(_DETAIL)[place] * lit, 0.03))
    return art.finish(rng)
