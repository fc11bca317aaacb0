"""Drawers of what grows, lives or lies there: textures, satellite ground, flowers, dishes, pets, scenes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from clgym.worlds import canvas
from clgym.worlds.canvas import Array, Canvas, Frame, Integers

Values = Mapping[str, Integers]
Pictures = NDArray[np.uint8]


def _choose(which: Integers, fields: tuple[Array, ...]) -> Array:
    """Take for every picture the field with its number."""
    return np.asarray(np.stack(fields)[which, np.arange(len(which))], dtype=np.float32)


def textures(rng: np.random.Generator, values: Values) -> Pictures:
    """Draw two-coloured patterns that fill the picture."""
    n = len(values["pattern"])
    frame = canvas.place(rng, n, size=(0.9, 1.1), shift=0.5, turn=0.4)
    rate = canvas.pick(values["grain"], (3.6, 1.9))
    p, q = frame.u * rate, frame.v * rate
    first, second = canvas.cells(rng, frame, 14)
    coarse_first, coarse_second = canvas.cells(rng, frame, 6)
    fine = canvas.column(values["grain"] == 0)
    edge = np.where(fine > 0, second - first, coarse_second - coarse_first)
    waves = canvas.wave(q + 0.35 * np.sin(p * np.float32(2.4)))
    weave = np.where(
        (np.floor(p * 1.2) + np.floor(q * 1.2)) % 2 > 0, canvas.wave(p * 2.4), canvas.wave(q * 2.4)
    )
    fields = (
        canvas.wave(p),
        np.clip(4.0 * canvas.wave(p) * canvas.wave(q) - 1.4, 0.0, 1.0),
        (canvas.wave(p * 0.8) > 0.5) * 0.5 + (canvas.wave(q * 0.8) > 0.5) * 0.5,
        np.clip(3.0 * waves - 1.0, 0.0, 1.0),
        weave,
        np.clip(1.4 - edge * 9.0, 0.0, 1.0),
        np.where(fine > 0, canvas.clouds(rng, n, 9), canvas.clouds(rng, n, 4)),
        np.clip(3.0 * canvas.wave(np.sqrt(p * p + q * q)) - 1.0, 0.0, 1.0),
    )
    ground = canvas.any_colour(rng, n, 0.35, 0.95)
    ink = ground * canvas.between(rng, n, 0.15, 0.45)[:, 0] + canvas.any_colour(rng, n, 0.0, 0.15)
    art = Canvas(ground)
    art.paint(
        _choose(values["pattern"], tuple(np.broadcast_to(f, first.shape) for f in fields)),
        ink.astype(np.float32),
    )
    art.shade(1.0 + 0.3 * (canvas.clouds(rng, n, 2) - 0.5))
    return art.finish(rng, 0.04)


def satellite(rng: np.random.Generator, values: Values) -> Pictures:
    """Draw ground from above."""
    n = len(values["ground"])
    frame = canvas.place(rng, n, size=(0.9, 1.1), shift=0.4, turn=1.5)
    shades = np.asarray(
        [
            (0.38, 0.60, 0.25),
            (0.08, 0.28, 0.14),
            (0.42, 0.29, 0.17),
            (0.80, 0.70, 0.48),
            (0.56, 0.56, 0.55),
            (0.10, 0.28, 0.50),
        ]
    )
    art = Canvas(canvas.varied(rng, shades[values["ground"]], 0.035))
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
    inks = np.asarray(
        [
            (0, 0, 0),
            (0.15, 0.36, 0.58),
            (0.75, 0.74, 0.72),
            (0.62, 0.58, 0.28),
            (0.13, 0.36, 0.15),
            (0.72, 0.38, 0.28),
            (0.88, 0.90, 0.93),
        ]
    )
    art.paint(_choose(values["mark"], fields), canvas.varied(rng, inks[values["mark"]], 0.05))
    return art.finish(rng, 0.035)


def flowers(rng: np.random.Generator, values: Values) -> Pictures:
    """Draw one blossom in front of leaves."""
    species = values["species"]
    n = len(species)
    art = Canvas(canvas.tint(rng, n, (0.20, 0.42, 0.18), 0.06))
    art.shade(0.6 + 0.8 * canvas.clouds(rng, n, 6))
    frame = canvas.place(rng, n, size=(0.66, 0.95), shift=0.15, turn=0.5)
    colour = canvas.named(rng, ("white", "yellow", "pink", "red", "purple", "blue"), values["colour"], 0.05)
    stem = canvas.line(frame, 0.0, 0.0, 0.1, 1.6, 0.12)
    art.paint(stem, canvas.tint(rng, n, (0.35, 0.62, 0.25), 0.05))
    # Columns: daisy, pansy, tulip, aster, poppy, lily.
    count = canvas.pick(species, (11, 5, 3, 19, 4, 6))
    inner = canvas.pick(species, (0.34, 0.38, 0.5, 0.55, 0.72, 0.16))
    sharp = canvas.pick(species, (0.7, 0.45, 1.0, 0.8, 0.6, 1.6))
    cover = canvas.petals(frame, count, inner, 0.95, sharp)
    half = frame.mirrored()
    cup = canvas.ellipse(frame, 0.0, 0.15, 0.54, 0.6) * (frame.v > 0.0)
    side = canvas.polygon(half, (0.50, -0.75), (0.55, 0.2), (0.0, 0.25))
    middle = canvas.polygon(half, (0.0, -0.75), (0.28, 0.05), (0.0, 0.3))
    crown = np.maximum(cup, np.maximum(side, middle))
    tulip = canvas.column(species == 2)
    art.paint(np.where(tulip > 0, crown, cover), colour)
    radius = np.sqrt(frame.u * frame.u + frame.v * frame.v)
    art.shade(
        1.0
        - 0.35
        * canvas.wave(canvas.inside(radius - 0.9, frame.pixel) * radius * 1.0)
        * (radius < 0.5)
        * (1 - tulip)
    )
    hearts = np.asarray(
        [
            (0.95, 0.75, 0.1),
            (0.15, 0.08, 0.2),
            (0, 0, 0),
            (0.85, 0.7, 0.2),
            (0.08, 0.08, 0.08),
            (0.75, 0.85, 0.3),
        ]
    )
    size = canvas.pick(species, (0.30, 0.30, 0.01, 0.18, 0.24, 0.14))
    art.paint(canvas.ellipse(frame, 0.0, 0.0, size) * (1 - tulip), canvas.varied(rng, hearts[species], 0.05))
    return art.finish(rng)


def _scatter(rng: np.random.Generator, art: Canvas, frame: Frame, values: Integers) -> None:
    """Lay a topping's pieces around the middle of the plate."""
    n = len(values)
    names = np.asarray(
        [
            (0.86, 0.14, 0.10),
            (0.99, 0.86, 0.35),
            (0.60, 0.47, 0.36),
            (0.36, 0.10, 0.45),
            (0.98, 0.97, 0.93),
            (0.10, 0.45, 0.14),
        ]
    )
    colour = canvas.varied(rng, names[values], 0.04)
    wide = canvas.pick(values, (0.19, 0.21, 0.17, 0.11, 0.24, 0.20))
    high = canvas.pick(values, (0.19, 0.07, 0.12, 0.11, 0.22, 0.09))
    heart = canvas.varied(
        rng,
        np.asarray(
            [
                (0.95, 0.45, 0.3),
                (1, 0.9, 0.5),
                (0.8, 0.72, 0.62),
                (0.5, 0.2, 0.6),
                (0.98, 0.72, 0.1),
                (0.25, 0.6, 0.2),
            ]
        )[values],
        0.03,
    )
    start = canvas.between(rng, n, 0.0, 6.28)
    for piece in range(5):
        angle = start + piece * np.float32(2 * np.pi / 5) + canvas.between(rng, n, -0.3, 0.3)
        out = canvas.between(rng, n, 0.28, 0.42)
        x, y = out * np.cos(angle), out * np.sin(angle)
        lean = frame.v + (frame.u - x) * canvas.between(rng, n, -0.6, 0.6)
        tilted = Frame(frame.u, lean, frame.pixel)
        art.paint(canvas.ellipse(tilted, x, y, wide, high), colour)
        art.paint(canvas.ellipse(tilted, x, y, wide * 0.5, high * 0.5), heart)


def dishes(rng: np.random.Generator, values: Values) -> Pictures:
    """Draw plates and bowls from above."""
    dish = values["dish"]
    n = len(dish)
    art = Canvas(canvas.any_colour(rng, n, 0.3, 0.75))
    art.clutter(rng, 0.3, 1)
    frame = canvas.place(rng, n, size=(0.85, 1.0), shift=0.08, turn=1.0)
    art.paint(canvas.ellipse(frame, 0.0, 0.0, 0.96), canvas.tint(rng, n, (0.93, 0.93, 0.92), 0.03))
    # Columns: pizza, soup, salad, cake, rice, pasta.
    rims = np.asarray(
        [
            (0.78, 0.52, 0.22),
            (0.35, 0.40, 0.55),
            (0.62, 0.78, 0.40),
            (0.55, 0.33, 0.20),
            (0.93, 0.92, 0.86),
            (0.92, 0.78, 0.40),
        ]
    )
    fills = np.asarray(
        [
            (0.93, 0.68, 0.30),
            (0.90, 0.55, 0.25),
            (0.40, 0.66, 0.22),
            (0.97, 0.86, 0.80),
            (0.97, 0.96, 0.91),
            (0.95, 0.83, 0.48),
        ]
    )
    angle = np.arctan2(frame.v, frame.u)
    radius = np.sqrt(frame.u * frame.u + frame.v * frame.v)
    ragged = canvas.pick(dish, (0.0, 0.0, 0.09, 0.0, 0.05, 0.05)) * np.sin(angle * 9.0)
    square = np.maximum(np.abs(frame.u), np.abs(frame.v)) * 1.2
    reach = np.where(canvas.column(dish == 3) > 0, square, radius + ragged)
    outer = canvas.pick(dish, (0.86, 0.9, 0.76, 0.8, 0.72, 0.74))
    art.paint(canvas.inside(reach - outer, frame.pixel), canvas.varied(rng, rims[dish], 0.04))
    art.paint(canvas.inside(reach - outer + 0.14, frame.pixel), canvas.varied(rng, fills[dish], 0.04))
    strands = canvas.wave(radius * 3.5 + 0.6 * np.sin(angle * 3.0)) * (dish == 5)[:, None, None]
    speckle = (canvas.clouds(rng, n, 15) > 0.62) * ((dish == 4) * 0.22 + (dish == 2) * 0.45)[:, None, None]
    art.shade((1.0 - (0.38 * strands + speckle) * (reach < outer)).astype(np.float32))
    _scatter(rng, art, frame, values["topping"])
    return art.finish(rng)


def pets(rng: np.random.Generator, values: Values) -> Pictures:
    """Draw a pet's face from the front."""
    animal = values["animal"]
    n = len(animal)
    art = Canvas(canvas.any_colour(rng, n, 0.35, 0.85))
    art.clutter(rng, 0.4)
    frame = canvas.place(rng, n, size=(0.72, 0.95), shift=0.12, turn=0.2)
    half = frame.mirrored()
    coat = canvas.named(rng, ("ginger", "black", "white", "grey", "brown"), values["coat"], 0.035)
    light = coat.mean(1, keepdims=True) > 0.5
    mark = np.where(light, coat * 0.45, 0.45 + 0.5 * coat).astype(np.float32)
    pink = canvas.tint(rng, n, (0.90, 0.62, 0.62), 0.04)
    pointed = canvas.polygon(half, (0.58, -0.95), (0.66, -0.9), (0.72, -0.1), (0.12, -0.45))
    floppy = canvas.ellipse(half, 0.72, 0.0, 0.22, 0.55)
    tall = canvas.ellipse(half, 0.30, -0.62, 0.15, 0.42)
    round_ = canvas.ellipse(half, 0.62, -0.55, 0.36)
    art.paint(_choose(animal, (pointed, floppy, tall, round_)), coat * np.float32(0.8))
    none = np.zeros_like(tall)
    art.paint(
        _choose(
            animal,
            (
                none,
                none,
                canvas.ellipse(half, 0.30, -0.62, 0.07, 0.3),
                canvas.ellipse(half, 0.62, -0.55, 0.2),
            ),
        ),
        pink,
    )
    wide = canvas.pick(animal, (0.66, 0.60, 0.52, 0.55))
    head = canvas.ellipse(frame, 0.0, 0.18, wide, 0.62)
    art.paint(head, coat)
    mask = head * canvas.ellipse(half, 0.28, 0.0, 0.24, 0.30)
    stripes = head * (canvas.wave(frame.u * 3.0) > 0.55) * (frame.v < 0.02)
    cheeks = head * (canvas.wave(frame.v * 3.6) > 0.6) * (half.u > 0.34) * (frame.v > 0.0)
    art.paint(_choose(values["marking"], (none, mask, np.maximum(stripes, cheeks).astype(np.float32))), mark)
    eye = np.where(animal == 0, 1, 0)
    eyes = np.asarray([(0.05, 0.05, 0.06), (0.45, 0.75, 0.20)])[eye].astype(np.float32)
    art.paint(canvas.ellipse(half, 0.27, 0.03, 0.15), np.full_like(coat, 0.97))
    art.paint(canvas.ellipse(half, 0.27, 0.03, 0.10), eyes)
    muzzle = canvas.pick(animal, (0.20, 0.33, 0.20, 0.16))
    art.paint(
        canvas.ellipse(frame, 0.0, 0.48, muzzle, 0.20), np.clip(coat * 0.6 + 0.38, 0, 1).astype(np.float32)
    )
    nose = np.where((animal == 1)[:, None], np.float32(0.08), pink).astype(np.float32)
    art.paint(canvas.ellipse(frame, 0.0, 0.40, muzzle * 0.45, 0.09), nose)
    return art.finish(rng)


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
    top = _choose(values, tuple(np.broadcast_to(t, u.shape) for t in tops))
    stand = canvas.inside(top - v, frame.pixel) * (v < horizon + 0.02)
    quiet = np.zeros_like(u)
    surf = (canvas.wave(v * 3.0 + 0.15 * np.sin(u * 4.0)) > 0.8) * (v < horizon + 0.4)
    stripes = canvas.wave(u / (v - horizon + 0.35) * 0.9)
    trunks = canvas.wave(u * 3.0) > 0.8
    tufts = canvas.clouds(rng, n, 15) > 0.62
    glints = (canvas.wave(v * 4.5) > 0.75) * (canvas.clouds(rng, n, 10) > 0.4)
    windows = (canvas.wave(u * 5.0) > 0.6) * (canvas.wave(v * 5.0) > 0.5)
    fields = (surf, quiet, 0.5 * stripes, trunks, windows, tufts, glints)
    return stand, _choose(values, tuple(np.asarray(f, dtype=np.float32) for f in fields))


def scenes(rng: np.random.Generator, values: Values) -> Pictures:
    """Draw places under a sky."""
    place, time = values["place"], values["time"]
    n = len(place)
    frame = canvas.place(rng, n, size=(0.95, 1.05), shift=0.1, turn=0.05)
    # Rows: sunny, sunset, night, misty.
    high = np.asarray([(0.32, 0.60, 0.95), (0.50, 0.25, 0.50), (0.03, 0.04, 0.16), (0.75, 0.77, 0.80)])
    low = np.asarray([(0.75, 0.88, 0.98), (0.98, 0.58, 0.22), (0.10, 0.12, 0.30), (0.86, 0.87, 0.88)])
    lamp = np.asarray([(1.0, 0.97, 0.7), (1.0, 0.85, 0.35), (0.95, 0.95, 0.85), (0.9, 0.9, 0.9)])
    light = np.asarray([(1.0, 1.0, 1.0), (0.85, 0.55, 0.45), (0.22, 0.25, 0.42), (0.80, 0.82, 0.85)])
    horizon = canvas.between(rng, n, -0.02, 0.25)
    art = Canvas(canvas.varied(rng, high[time], 0.03))
    art.paint(np.clip((frame.v + 1.0) / (horizon + 1.0), 0.0, 1.0), canvas.varied(rng, low[time], 0.03))
    sun = canvas.ellipse(
        frame, canvas.between(rng, n, -0.7, 0.7), horizon - canvas.pick(time, (0.75, 0.22, 0.7, 3.0)), 0.17
    )
    art.paint(sun, canvas.varied(rng, lamp[time], 0.02))
    # Columns: beach, mountain, desert, forest, city, meadow, lake.
    ground = np.asarray(
        [
            (0.15, 0.45, 0.70),
            (0.40, 0.45, 0.38),
            (0.90, 0.74, 0.42),
            (0.20, 0.36, 0.15),
            (0.45, 0.45, 0.47),
            (0.40, 0.68, 0.22),
            (0.16, 0.38, 0.58),
        ]
    )
    upright = np.asarray(
        [
            (0.2, 0.5, 0.7),
            (0.45, 0.42, 0.48),
            (0.85, 0.66, 0.36),
            (0.10, 0.32, 0.14),
            (0.40, 0.38, 0.42),
            (0.3, 0.5, 0.2),
            (0.15, 0.35, 0.18),
        ]
    )
    detail = np.asarray(
        [
            (0.95, 0.97, 1.0),
            (0, 0, 0),
            (0.75, 0.55, 0.28),
            (0.30, 0.20, 0.12),
            (0.95, 0.88, 0.45),
            (0.90, 0.45, 0.60),
            (0.75, 0.85, 0.92),
        ]
    )
    stand, fields = _land(rng, frame, place, horizon)
    below = canvas.inside(horizon - frame.v, frame.pixel)
    glow = light[time] * (1 - 0.35 * (time == 3)[:, None]) + 0.28 * (time == 3)[:, None]
    art.paint(below, canvas.varied(rng, ground[place] * glow, 0.03))
    art.paint(stand, canvas.varied(rng, upright[place] * glow, 0.03))
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
    art.paint((fields * where * 0.8).astype(np.float32), canvas.varied(rng, detail[place] * lit, 0.03))
    return art.finish(rng)
