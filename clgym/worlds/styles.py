"""Other renditions of pictures: the same thing sketched, inverted, posterised, grey, as a mosaic; and hard to see.

Styles are functions of the picture alone, in whole numbers, so that they give the same bytes everywhere. They
take pictures of any size: the embedded ones and, in streams whose domains shift, those of other sources.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Pictures = npt.NDArray[np.uint8]

_BLOCKS = 16  # of a mosaic, along a side
_LEVELS = 3  # of a posterised channel
_SMALL = (16, 24)  # least and largest side of a shrunk thing, of 32


def photo(pictures: Pictures) -> Pictures:
    """Return the pictures as they are."""
    return pictures


def sketch(pictures: Pictures) -> Pictures:
    """Draw dark lines where brightness changes, on white paper with a thin wash of the colours."""
    grey = _brightness(pictures).astype(np.int64)
    around = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = np.abs(around[:, 1:-1, 2:] - around[:, 1:-1, :-2])
    down = np.abs(around[:, 2:, 1:-1] - around[:, :-2, 1:-1])
    lines = np.minimum(3 * (across + down) // 2, 255)
    wash = 255 - (255 - pictures.astype(np.int64)) * 2 // 5
    return np.asarray(wash * (255 - lines[..., None]) // 255, dtype=np.uint8)


def inverted(pictures: Pictures) -> Pictures:
    """Swap light and dark and every colour for its complement, as on a negative."""
    return np.asarray(255 - pictures, dtype=np.uint8)


def posterised(pictures: Pictures) -> Pictures:
    """Leave three levels of each colour channel, as in a print."""
    level = pictures.astype(np.int64) * _LEVELS // 256
    return np.asarray(level * 255 // (_LEVELS - 1), dtype=np.uint8)


def grey(pictures: Pictures) -> Pictures:
    """Take the colours away."""
    return np.repeat(_brightness(pictures)[..., None], 3, axis=-1)


def mosaic(pictures: Pictures) -> Pictures:
    """Lay sixteen by sixteen square stones, each of the colour of the middle of its place."""
    return _blocks(pictures, _BLOCKS)


# In the order in which a stream whose domains shift shows them.
STYLES: dict[str, Callable[[Pictures], Pictures]] = {
    style.__name__: style for style in (photo, sketch, posterised, inverted, mosaic, grey)
}


def rendered(pictures: Pictures, which: npt.NDArray[np.int64]) -> Pictures:
    """Return each picture in a style of its own.

    Args:
        pictures: uint8 ``(N, H, W, 3)``.
        which: Position of each picture's style in :data:`STYLES`, int64 ``(N,)``.
    """
    out = np.empty_like(pictures)
    for number, style in enumerate(STYLES.values()):
        out[which == number] = style(pictures[which == number])
    return out


def hardened(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Return pictures that are hard to see: small, off centre, in clutter, partly covered, of low contrast.

    The thing is shrunk to between half and three quarters of the side; around it lie blocks of colour from
    another picture of the batch; a bar of that picture covers a strip of it; contrast is halved or less.

    Args:
        pictures: uint8 ``(N, 32, 32, 3)``.
        rng: Source of all randomness.
    """
    n, side = pictures.shape[:2]
    out = _blocks(pictures, 8)[rng.permutation(n)]
    bars = _blocks(pictures, 4)[rng.permutation(n)]
    sides = np.asarray(rng.integers(_SMALL[0], _SMALL[1] + 1, n))
    tops, lefts = np.asarray(rng.integers(0, side - sides + 1, (2, n)))
    starts, widths = np.asarray(rng.integers(0, side - 4, n)), np.asarray(rng.integers(3, 5, n))
    upright = np.asarray(rng.random(n) < 0.5)
    for i in range(n):
        small, top, left = int(sides[i]), int(tops[i]), int(lefts[i])
        at = (2 * np.arange(small) + 1) * side // (2 * small)
        out[i, top : top + small, left : left + small] = pictures[i][at[:, None], at]
        strip = slice(int(starts[i]), int(starts[i] + widths[i]))
        bar = np.s_[:, strip] if upright[i] else np.s_[strip, :]
        out[i][bar] = bars[i][bar]
    contrast = rng.integers(40, 66, (n, 1, 1, 1))  # percent
    level = rng.integers(70, 186, (n, 1, 1, 1))
    return np.asarray(np.clip(level + (out.astype(np.int64) - 128) * contrast // 100, 0, 255), dtype=np.uint8)


def _brightness(pictures: Pictures) -> Pictures:
    """Return the brightness of each pixel, uint8 ``(N, H, W)``, by the weights of ITU-R BT.601 in 256ths."""
    red, green, blue = np.moveaxis(pictures.astype(np.int64), -1, 0)
    return np.asarray((77 * red + 150 * green + 29 * blue) >> 8, dtype=np.uint8)


def _blocks(pictures: Pictures, count: int) -> Pictures:
    """Give every one of ``count`` by ``count`` blocks the colour of its middle; smaller pictures keep their pixels."""
    out = pictures
    for axis in (1, 2):
        side = pictures.shape[axis]
        number = np.arange(side) * min(count, side) // side
        starts = np.searchsorted(number, np.arange(min(count, side) + 1))
        middles = (starts[:-1] + starts[1:]) // 2
        out = np.take(out, middles[number], axis=axis)
    return out
