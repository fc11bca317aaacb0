"""Drawers of what is seen from near: textures, flowers, dishes, pets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from clgym.worlds import canvas
from clgym.worlds.canvas import Canvas, Frame, Integers

Values = Mapping[str, Integers]
Pictures = NDArray[np.uint8]


def textures(rng: np.random.Generator, values: Values) -> Pictures:
    """Draw two-coloured patterns that fill the picture."""
    n = len(values["pattern"])
    frame = canvas.place(rng, n, size=(0.92, 1.08), shift=0.5, turn=0.2)
    rate = canvas.pick(values["grain"], (3.6, 1.9))
    p, q = frame.u * rate, frame.v * rate
    first, second = canvas.cells(rng, frame, 14)
    coarse_first, coarse_second = canvas.cells(rng, frame, 6)
    fine = canvas.column(values["grain"] == 0)
    edge = np.where(fine > 0, second - first, coarse_second - coarse_first)
    waves = canvas.wave(q + 0.35 * np.sin(p * np.float32(2.4)))
    weave = np.where((np.floor(p * 1.2) + np.floor(q * 1.2)) % 2 > 0, canvas.wave(p * 2.4), canvas.wave(q * 2.4))
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
        canvas.choose(values["pattern"], tuple(np.broadcast_to(f, first.shape) for f in fields)),
        ink.astype(np.float32),
    )
    art.shade(1.0 + 0.3 * (canvas.clouds(rng, n, 2) - 0.5))
    return art.finish(rng, 0.03)


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
        1.0 - 0.35 * canvas.wave(canvas.inside(radius - 0.9, frame.pixel) * radius * 1.0) * (radius < 0.5) * (1 - tulip)
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
    art.paint(canvas.choose(animal, (pointed, floppy, tall, round_)), coat * np.float32(0.8))
    none = np.zeros_like(tall)
    art.paint(
        canvas.choose(
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
    art.paint(canvas.choose(values["marking"], (none, mask, np.maximum(stripes, cheeks).astype(np.float32))), mark)
    eye = np.where(animal == 0, 1, 0)
    eyes = np.asarray([(0.05, 0.05, 0.06), (0.45, 0.75, 0.20)])[eye].astype(np.float32)
    art.paint(canvas.ellipse(half, 0.27, 0.03, 0.15), np.full_like(coat, 0.97))
    art.paint(canvas.ellipse(half, 0.27, 0.03, 0.10), eyes)
    muzzle = canvas.pick(animal, (0.20, 0.33, 0.20, 0.16))
    art.paint(canvas.ellipse(frame, 0.0, 0.48, muzzle, 0.20), np.clip(coat * 0.6 + 0.38, 0, 1).astype(np.float32))
    nose = np.where((animal == 1)[:, None], np.float32(0.08), pink).astype(np.float32)
    art.paint(canvas.ellipse(frame, 0.0, 0.40, muzzle * 0.45, 0.09), nose)
    return art.finish(rng)
