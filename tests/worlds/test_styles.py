"""Styles: values worked by hand, any size, and that hard pictures are hard in the ways that are claimed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from clgym.worlds.pictures import draw
from clgym.worlds.styles import STYLES, grey, hardened, inverted, mosaic, photo, posterised, rendered, sketch

PICTURES, LABELS = draw("objects", "test", 2)


def one(*rows: list[tuple[int, int, int]]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.array([rows], np.uint8)


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (1, 1, 1, 3), (3, 17, 40, 3), (0, 8, 8, 3)])
def test_styles_take_any_size_and_leave_the_picture_alone(name: str, shape: tuple[int, ...]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    before = pictures.copy()
    out = STYLES[name](pictures)
    assert out.shape == shape
    assert out.dtype == np.uint8
    assert np.array_equal(pictures, before)
    assert np.array_equal(out, STYLES[name](pictures))


def test_values_by_hand() -> None:
    pixel = one([(200, 100, 50)])
    # (77 * 200 + 150 * 100 + 29 * 50) / 256 = 124.4
    assert grey(pixel)[0, 0, 0].tolist() == [124] * 3
    assert inverted(pixel)[0, 0, 0].tolist() == [55, 155, 205]
    # Levels 200 * 3 // 256 = 2, 1, 0, of 0, 127 and 255.
    assert posterised(pixel)[0, 0, 0].tolist() == [255, 127, 0]
    # No edge: white less two fifths of what is missing to white.
    assert sketch(pixel)[0, 0, 0].tolist() == [255 - 22, 255 - 62, 255 - 82]
    assert photo(pixel) is pixel


def test_sketches_are_dark_at_edges() -> None:
    half = np.zeros((1, 8, 8, 3), np.uint8)
    half[:, :, 4:] = 255
    lines = sketch(half)[0, 4, :, 0]
    assert (lines[3:5] == 0).all()
    assert (lines[:3] == 153).all()
    assert (lines[5:] == 255).all()


def test_mosaic_has_one_colour_a_stone() -> None:
    stones = mosaic(PICTURES).reshape(-1, 16, 2, 16, 2, 3)
    assert (stones == stones[:, :, :1, :, :1]).all()
    assert np.array_equal(stones[:, :, 0, :, 0], PICTURES[:, 1::2, 1::2])
    small = np.random.default_rng(0).integers(0, 256, (1, 5, 5, 3), np.uint8)
    assert np.array_equal(mosaic(small), small)


def test_each_picture_in_a_style_of_its_own() -> None:
    which = np.arange(len(PICTURES)) % len(STYLES)
    out = rendered(PICTURES, which)
    for number, style in enumerate(STYLES.values()):
        assert np.array_equal(out[which == number], style(PICTURES[which == number]))


def test_hard_pictures_have_less_contrast_and_the_same_seed_gives_the_same() -> None:
    hard = hardened(PICTURES, np.random.default_rng(0))
    assert hard.shape == PICTURES.shape
    assert hard.dtype == np.uint8
    assert np.array_equal(hard, hardened(PICTURES, np.random.default_rng(0)))
    assert not np.array_equal(hard, hardened(PICTURES, np.random.default_rng(1)))
    ranges = [np.ptp(pictures.reshape(len(pictures), -1).astype(int), axis=1) for pictures in (PICTURES, hard)]
    assert (ranges[1] <= 0.66 * 256).all()
    assert ranges[1].mean() < 0.6 * ranges[0].mean()


def test_renditions_are_the_same_bytes_everywhere() -> None:
    pictures = (np.arange(4 * 32 * 32 * 3) * 2654435761 >> 7).astype(np.uint8).reshape(4, 32, 32, 3)
    digest = hashlib.sha256()
    for style in STYLES.values():
        digest.update(style(pictures).tobytes())
    digest.update(hardened(pictures, np.random.default_rng(0)).tobytes())
    assert digest.hexdigest()[:16] == "33ea987e8f7d67ad"
