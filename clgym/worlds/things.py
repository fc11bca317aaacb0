"""Drawers of made things: aircraft, everyday objects, small objects, cars."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from clgym.worlds import canvas
from clgym.worlds.canvas import Array, Canvas, Frame, Integers

Values = Mapping[str, Integers]
Pictures = NDArray[np.uint8]

DARK = (0.12, 0.12, 0.14)
_GLASS = (0.55, 0.75, 0.88)


def aircraft(rng: np.random.Generator, values: Values) -> Pictures:
    """Draw aircraft from above in a sky."""
    n = len(values["wing"])
    sky = Canvas(canvas.tint(rng, n, (0.45, 0.66, 0.90), 0.05))
    sky.paint(np.clip(canvas.clouds(rng, n, 4) * 1.6 - 0.7, 0.0, 0.8), canvas.tint(rng, n, (0.93, 0.95, 0.98), 0.03))
    frame = canvas.place(rng, n, size=(0.8, 0.98), shift=0.1, turn=0.3)
    half = frame.mirrored()
    wing, engines = values["wing"], values["engines"]
    grey = canvas.tint(rng, n, (0.70, 0.72, 0.76), 0.05)
    sweep = canvas.pick(wing, (0.02, 0.42, 0.62))
    root = canvas.pick(wing, (0.30, 0.34, 0.75))
    tip = canvas.pick(wing, (0.22, 0.14, 0.05))
    reach = canvas.pick(wing, (0.95, 0.88, 0.68))
    front = canvas.pick(wing, (-0.22, -0.30, -0.25))
    wings = canvas.polygon(
        half, (0.0, front), (reach, front + sweep), (reach, front + sweep + tip), (0.0, front + root)
    )
    sky.paint(wings, grey)
    dark = canvas.tint(rng, n, DARK, 0.03)
    for at, least in ((0.34, 1), (0.60, 2)):
        y = front + sweep * (at / reach) + 0.02
        sky.paint(canvas.ellipse(half, at, y, 0.085, 0.17) * canvas.column(engines >= least), dark)
    width = canvas.pick(values["body"], (0.09, 0.19))
    body = canvas.ellipse(frame, 0.0, 0.0, width, 0.95)
    sky.paint(body, canvas.tint(rng, n, (0.93, 0.93, 0.95), 0.03))
    tail = canvas.named(rng, ("red", "blue", "yellow"), values["tail"])
    sky.paint(canvas.polygon(half, (0.0, 0.62), (0.40, 0.78), (0.40, 0.92), (0.0, 0.90)), tail)
    sky.paint(canvas.ellipse(frame, 0.0, -0.72, width * 0.55, 0.09), dark)
    sky.paint(canvas.ellipse(frame, 0.0, -0.95, 0.16, 0.06) * canvas.column(engines == 0), dark)
    return sky.finish(rng)


def _mug(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    art.paint(canvas.ring(f, 0.52, 0.05, 0.28, 0.15), c)
    art.paint(canvas.box(f, -0.08, 0.05, 0.52, 0.6), c)
    art.paint(canvas.ellipse(f, -0.08, -0.55, 0.46, 0.12), dark)


def _umbrella(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    art.paint(canvas.line(f, 0.0, -0.8, 0.0, 0.7, 0.1), dark)
    art.paint(canvas.ring(f, 0.14, 0.7, 0.14, 0.1) * (f.v > 0.7), dark)
    dome = np.minimum(canvas.ellipse(f, 0.0, 0.05, 0.9, 0.8), f.v < 0.05)
    art.paint(dome - np.minimum(dome, canvas.ellipse(f.mirrored(), 0.3, 0.05, 0.26, 0.12)), c)


def _lamp(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    art.paint(canvas.line(f, 0.0, 0.0, 0.0, 0.75, 0.12), dark)
    art.paint(canvas.ellipse(f, 0.0, 0.8, 0.42, 0.12), dark)
    art.paint(canvas.polygon(f, (-0.3, -0.8), (0.3, -0.8), (0.68, 0.0), (-0.68, 0.0)), c)


def _chair(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    art.paint(canvas.box(f, -0.42, 0.55, 0.07, 0.4), dark)
    art.paint(canvas.box(f, 0.42, 0.55, 0.07, 0.4), dark)
    art.paint(canvas.box(f, -0.42, -0.35, 0.1, 0.6), c)
    art.paint(canvas.box(f, 0.0, 0.18, 0.52, 0.13), c)


def _key(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    art.paint(canvas.ring(f, -0.5, 0.0, 0.28, 0.18), c)
    art.paint(canvas.box(f, 0.28, 0.0, 0.56, 0.09), c)
    art.paint(canvas.box(f, 0.5, 0.18, 0.08, 0.16), c)
    art.paint(canvas.box(f, 0.76, 0.22, 0.08, 0.2), c)


def _bell(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    art.paint(canvas.ellipse(f, 0.0, 0.66, 0.16), dark)
    art.paint(canvas.ellipse(f, 0.0, -0.2, 0.45, 0.5), c)
    art.paint(canvas.polygon(f, (-0.44, -0.15), (0.44, -0.15), (0.75, 0.58), (-0.75, 0.58)), c)
    art.paint(canvas.ring(f, 0.0, -0.78, 0.1, 0.09), dark)


def _bottle(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    art.paint(canvas.box(f, 0.0, -0.5, 0.12, 0.35), c)
    art.paint(canvas.ellipse(f, 0.0, -0.05, 0.36, 0.3), c)
    art.paint(canvas.box(f, 0.0, 0.4, 0.36, 0.5), c)
    art.paint(canvas.box(f, 0.0, -0.85, 0.16, 0.08), dark)


def _hat(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    art.paint(canvas.ellipse(f, 0.0, 0.4, 0.95, 0.2), c)
    art.paint(canvas.polygon(f, (-0.4, -0.55), (0.4, -0.55), (0.5, 0.4), (-0.5, 0.4)), c)
    art.paint(canvas.box(f, 0.0, 0.22, 0.48, 0.09), dark)


def _clock(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    art.paint(canvas.ellipse(f, 0.0, 0.0, 0.85), c)
    art.paint(canvas.ellipse(f, 0.0, 0.0, 0.6), np.full_like(c, 0.95))
    art.paint(canvas.line(f, 0.0, 0.0, 0.0, -0.45, 0.12), dark)
    art.paint(canvas.line(f, 0.0, 0.0, 0.34, 0.12, 0.12), dark)


def _house(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    art.paint(canvas.box(f, 0.0, 0.35, 0.6, 0.5), c)
    art.paint(canvas.polygon(f, (-0.02, -0.85), (0.02, -0.85), (0.85, -0.12), (-0.85, -0.12)), dark)
    art.paint(canvas.box(f, 0.25, 0.58, 0.14, 0.28), dark)
    art.paint(canvas.box(f, -0.25, 0.3, 0.15, 0.15), np.full_like(c, 0.92))


Painter = Callable[[Canvas, Frame, Array, Array], None]
THINGS: tuple[Painter, ...] = (_mug, _umbrella, _lamp, _chair, _key, _bell, _bottle, _hat, _clock, _house)


def paint_each(art: Canvas, which: Integers, painters: tuple[Painter, ...], frame: Frame, *colours: Array) -> None:
    """Let every painter paint the pictures that are its own."""
    for index, painter in enumerate(painters):
        rows = np.flatnonzero(which == index)
        if len(rows):
            part = Canvas(colours[0][rows])
            part.pixels = art.pixels[rows]
            own = Frame(frame.u[rows], frame.v[rows], frame.pixel[rows])
            painter(part, own, colours[0][rows], colours[1][rows])
            art.pixels[rows] = part.pixels


def objects(rng: np.random.Generator, values: Values) -> Pictures:
    """Draw everyday things in a colour on a pale wall."""
    n = len(values["thing"])
    art = Canvas(canvas.any_colour(rng, n, 0.55, 0.92))
    art.clutter(rng, 0.45)
    frame = canvas.place(rng, n, size=(0.62, 0.95), shift=0.18, turn=0.3)
    names = ("red", "yellow", "green", "blue", "purple", "brown")
    colour = canvas.named(rng, names, values["colour"], 0.07)
    paint_each(art, values["thing"], THINGS, frame, colour, canvas.tint(rng, n, DARK, 0.04))
    return art.finish(rng)


def _bird(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    art.paint(canvas.polygon(f, (-1.0, -0.25), (-0.4, 0.0), (-0.4, 0.3), (-0.95, 0.15)), c)
    art.paint(canvas.ellipse(f, -0.05, 0.1, 0.55, 0.38), c)
    art.paint(canvas.ellipse(f, 0.5, -0.35, 0.28), c)
    art.paint(canvas.polygon(f, (0.72, -0.45), (1.0, -0.3), (0.72, -0.2)), dark)
    art.paint(canvas.line(f, 0.0, 0.4, 0.0, 0.85, 0.12), dark)


def _fish(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    art.paint(canvas.polygon(f, (-0.95, -0.5), (-0.45, 0.0), (-0.95, 0.5), (-0.85, 0.0)), c)
    art.paint(canvas.ellipse(f, 0.15, 0.0, 0.75, 0.46), c)
    art.paint(canvas.ellipse(f, 0.58, -0.1, 0.1), dark)


def _ship(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    art.paint(canvas.polygon(f, (-0.95, 0.2), (0.95, 0.2), (0.6, 0.75), (-0.7, 0.75)), c)
    art.paint(canvas.box(f, 0.0, 0.0, 0.4, 0.22), c)
    art.paint(canvas.box(f, 0.1, -0.45, 0.14, 0.3), dark)


def _truck(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    art.paint(canvas.box(f, -0.25, -0.1, 0.65, 0.5), c)
    art.paint(canvas.box(f, 0.68, 0.1, 0.26, 0.3), dark)
    art.paint(canvas.ellipse(f, -0.5, 0.5, 0.22), dark)
    art.paint(canvas.ellipse(f, 0.55, 0.5, 0.22), dark)


def _frog(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    half = f.mirrored()
    art.paint(canvas.ellipse(half, 0.6, 0.45, 0.35, 0.3), c)
    art.paint(canvas.ellipse(f, 0.0, 0.2, 0.72, 0.55), c)
    art.paint(canvas.ellipse(half, 0.4, -0.42, 0.24), c)
    art.paint(canvas.ellipse(half, 0.4, -0.45, 0.11), dark)


def _butterfly(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    half = f.mirrored()
    art.paint(canvas.ellipse(half, 0.5, -0.35, 0.46, 0.48), c)
    art.paint(canvas.ellipse(half, 0.4, 0.45, 0.34, 0.36), c)
    art.paint(canvas.ellipse(f, 0.0, 0.0, 0.11, 0.75), dark)


def _tree(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    art.paint(canvas.box(f, 0.0, 0.6, 0.12, 0.38), dark)
    art.paint(canvas.ellipse(f, 0.0, -0.25, 0.68, 0.65), c)


def _rocket(art: Canvas, f: Frame, c: Array, dark: Array) -> None:
    art.paint(canvas.polygon(f.mirrored(), (0.0, 0.2), (0.6, 0.8), (0.6, 0.95), (0.0, 0.75)), dark)
    art.paint(canvas.ellipse(f, 0.0, -0.05, 0.32, 0.92), c)
    art.paint(canvas.ellipse(f, 0.0, -0.3, 0.14), dark)


SMALL: tuple[Painter, ...] = (_bird, _fish, _ship, _truck, _frog, _butterfly, _tree, _rocket)


def small_objects(rng: np.random.Generator, values: Values) -> Pictures:
    """Draw small things with a plain, spotted or striped skin, out of focus and in clutter."""
    n = len(values["thing"])
    art = Canvas(canvas.any_colour(rng, n, 0.25, 0.8))
    art.clutter(rng, 0.45)
    frame = canvas.place(rng, n, size=(0.7, 0.92), shift=0.15, turn=0.2)
    base = canvas.any_colour(rng, n, 0.15, 1.0)
    skin = np.where((base.mean(1, keepdims=True) > 0.55), base * 0.3, 0.55 + 0.45 * base).astype(np.float32)
    paint_each(art, values["thing"], SMALL, frame, base, canvas.tint(rng, n, DARK, 0.04))
    same = np.abs(art.pixels - base[:, :, None, None]).max(1) < 0.02
    stripes = canvas.wave(frame.u * 2.1 + canvas.between(rng, n, 0, 1)) > 0.55
    spots = canvas.wave(frame.u * 2.0 + frame.v) * canvas.wave(frame.v * 2.0 - frame.u) > 0.42
    kind = canvas.column(values["skin"])
    cover = same * ((kind == 1) * spots + (kind == 2) * stripes)
    art.paint(cover.astype(np.float32), skin)
    _blur(art)
    return art.finish(rng)


def _blur(art: Canvas) -> None:
    """Average every pixel with its four neighbours."""
    p = art.pixels
    inner = p[:, :, 1:-1, 1:-1]
    around = p[:, :, :-2, 1:-1] + p[:, :, 2:, 1:-1] + p[:, :, 1:-1, :-2] + p[:, :, 1:-1, 2:]
    p[:, :, 1:-1, 1:-1] = 0.5 * inner + 0.125 * around


def cars(rng: np.random.Generator, values: Values) -> Pictures:
    """Draw cars from the side on a road."""
    body = values["body"]
    n = len(body)
    art = Canvas(canvas.any_colour(rng, n, 0.55, 0.9))
    art.clutter(rng, 0.35)
    frame = canvas.place(rng, n, size=(0.85, 0.98), shift=0.07, turn=0.05)
    art.paint((frame.v > 0.52).astype(np.float32), canvas.tint(rng, n, (0.42, 0.42, 0.44)))
    paint = canvas.named(rng, ("red", "blue", "green", "yellow", "white", "grey"), values["colour"])
    dark, glass = canvas.tint(rng, n, DARK, 0.03), canvas.tint(rng, n, _GLASS, 0.04)
    # Columns: sedan, hatchback, coupe, van, pickup, bus.
    top = canvas.pick(body, (-0.30, -0.32, -0.12, -0.50, -0.30, -0.66))
    waist = canvas.pick(body, (0.08, 0.08, 0.16, 0.05, 0.12, 0.05))
    back = canvas.pick(body, (-0.45, -0.82, -0.42, -0.90, -0.05, -0.92))
    front = canvas.pick(body, (0.35, 0.28, 0.20, 0.55, 0.40, 0.92))
    rear_foot = canvas.pick(body, (-0.72, -0.88, -0.95, -0.92, -0.10, -0.92))
    front_foot = canvas.pick(body, (0.62, 0.60, 0.70, 0.85, 0.62, 0.92))
    art.paint(canvas.polygon(frame, (back, top), (front, top), (front_foot, waist), (rear_foot, waist)), paint)
    art.paint(canvas.box(frame, 0.0, (waist + 0.48) / 2, 0.94, (0.48 - waist) / 2), paint)
    inset = 0.12
    window = canvas.polygon(
        frame,
        (back + inset, top + 0.1),
        (front - inset, top + 0.1),
        (front_foot - 0.2, waist),
        (rear_foot + 0.2, waist),
    )
    art.paint(window, glass)
    pillar = canvas.pick(body, (-0.02, -0.1, -0.1, -0.15, 0.2, 0.1))
    art.paint(canvas.box(frame, pillar, (top + waist) / 2, 0.05, (waist - top) / 2), paint)
    stripe = canvas.box(frame, 0.0, 0.28, 0.94, 0.07) * canvas.column(values["trim"] == 1)
    art.paint(stripe, np.where(paint.mean(1, keepdims=True) > 0.6, 0.1, 0.97) * np.ones_like(paint))
    radius = canvas.pick(values["wheels"], (0.17, 0.29))
    for x in (-0.55, 0.55):
        art.paint(canvas.ellipse(frame, x, 0.74 - radius, radius), dark)
        art.paint(canvas.ellipse(frame, x, 0.74 - radius, radius * 0.45), np.full_like(dark, 0.75))
    return art.finish(rng)
