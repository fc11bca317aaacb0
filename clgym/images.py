"""Labelled images as :class:`clgym.scenario.Data`: decoded on demand from disk, or held in memory.

Encoded images stay on disk (memory-mapped Arrow, or files), so memory does not grow with the data set.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from clgym.errors import SourceError
from clgym.events import Inputs, IntArray
from clgym.scenario import Data

RATIO = (3 / 4, 4 / 3)
TRIES = 10
DRAWS = 2 * TRIES + 3


def data_directory() -> Path:
    """Return where downloads and caches live: ``CLGYM_DATA``, or ``~/.cache/clgym/data``."""
    return Path(os.environ.get("CLGYM_DATA") or Path.home() / ".cache" / "clgym" / "data")


@dataclass(frozen=True, slots=True)
class View:
    """How an image file becomes a square.

    Attributes:
        flip: Whether the training view may mirror: not for digits, letters or text.
        least: Smallest share of the area that a training crop shows; the largest is 1.
        resize: The test view resizes the shorter side to so many times the output's and crops the centre.
    """

    flip: bool = True
    least: float = 0.9
    resize: float = 1.0


CLIP_VIEW = View(flip=False)
# Of PILOT and SEMA (arXiv:2403.18886) and CODA-Prompt: strong crops, mirrored; Resize(256), CenterCrop(224).
PILOT_VIEW = View(least=0.05, resize=256 / 224)


def fill_prompts(templates: Sequence[str], classes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return for each class its filled templates.

    >>> fill_prompts(["a {}.", "the {}."], ["cat"])
    (('a cat.', 'the cat.'),)
    """
    return tuple(tuple(t.replace("{}", c) for t in templates) for c in classes)


class Store(Protocol):
    """Encoded images on disk, read by row; safe to read from several threads."""

    def __len__(self) -> int:
        """Return the number of images."""

    def open(self, row: int) -> Image.Image:
        """Return the image at ``row``, its header read and its pixels not."""

    def where(self, row: int) -> str:
        """Return the file (and row) of an image, for messages."""

    def digest(self) -> str:
        """Return a sha256 (64 hex digits) of the encoded content."""


@dataclass(frozen=True, slots=True)
class FileStore:
    """One file per image.

    Attributes:
        paths: The files, in row order.
    """

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def open(self, row: int) -> Image.Image:
        """Return the image at ``row``, its header read and its pixels not."""
        return Image.open(self.paths[row])

    def where(self, row: int) -> str:
        """Return the file of an image."""
        return str(self.paths[row])

    def digest(self) -> str:
        """Return the sha256 over the sha256 of every file; reads them all."""
        total = hashlib.sha256()
        for path in self.paths:
            total.update(bytes.fromhex(_file_sha256(path)))
        return total.hexdigest()


class ArrowStore:
    """Image bytes in a memory-mapped Arrow column, converted once from Parquet files.

    Args:
        column: A ``pyarrow.ChunkedArray`` of binary, or of structs with a ``bytes`` field.
        files: The Parquet files with their number of rows, in row order.
    """

    def __init__(self, column: Any, files: Sequence[tuple[Path, int]]) -> None:
        """Index the chunks; see the class for the arguments."""
        fields = [c.field("bytes") if hasattr(c, "field") else c for c in column.chunks]
        self._chunks = [c for c in fields if len(c)]
        self._starts = np.cumsum([0, *(len(c) for c in self._chunks)])
        self._files = tuple(files)
        self._ends = np.cumsum([n for _, n in files])

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self._starts[-1])

    def open(self, row: int) -> Image.Image:
        """Return the image at ``row``; its bytes are read in place, without a copy."""
        import pyarrow as pa

        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        value = self._chunks[chunk][row - int(self._starts[chunk])]
        if not value.is_valid:
            raise ValueError("the row holds no image bytes")
        return Image.open(pa.BufferReader(value.as_buffer()))

    def where(self, row: int) -> str:
        """Return the Parquet file and the row in it, from 0."""
        file = int(np.searchsorted(self._ends, row, side="right"))
        path, rows = self._files[file]
        return f"{path}, row {row - (int(self._ends[file]) - rows)}"

    def digest(self) -> str:
        """Return the sha256 over the sha256 of every Parquet file, remembered until a file changes."""
        return hashlib.sha256("".join(_remembered_sha256(p) for p, _ in self._files).encode()).hexdigest()


class EncodedImages:
    """Encoded images on disk, decoded by :meth:`batch` to uint8 ``(B, size, size, 3)``.

    The test view resizes the shorter side (bicubic) and crops the centre. The training view crops a share of
    the area at an aspect of 3/4 to 4/3, resizes (bicubic) and, where the view says so, flips half of the images,
    as torchvision's ``RandomResizedCrop`` and ``RandomHorizontalFlip`` do; every image takes the same
    number of draws, so that its view does not depend on its neighbours. EXIF orientation is ignored, as
    torchvision does. Safe to call from several threads.

    Args:
        store: The encoded images.
        targets: Labels ``(N,)``.
        size: Side of the output in pixels.
        rows: Rows of ``store`` to use, ``(N,)``; all by default.
        view: How much is cropped, and whether images may be mirrored.
    """

    decodes = True

    def __init__(
        self,
        store: Store,
        targets: npt.ArrayLike,
        size: int,
        *,
        rows: npt.ArrayLike | None = None,
        view: View = View(),
    ) -> None:
        """Hold the arguments; nothing is read yet."""
        self.targets: IntArray = np.asarray(targets, dtype=np.int64)
        self._rows: IntArray = np.arange(len(store)) if rows is None else np.asarray(rows, dtype=np.int64)
        assert self._rows.shape == self.targets.shape
        self._store, self._size, self._view = store, size, view

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.targets)

    def batch(self, index: IntArray, rng: np.random.Generator | None = None) -> npt.NDArray[np.uint8]:
        """Return fresh images ``(B, size, size, 3)``; see the class for the two views.

        Raises:
            SourceError: An image cannot be decoded; the message names it.
        """
        out = np.empty((len(index), self._size, self._size, 3), dtype=np.uint8)
        draws = None if rng is None else rng.random((len(index), DRAWS))
        for i, row in enumerate(self._rows[index]):
            image = self._decode(int(row))
            shown = centre(image, self._size, self._view.resize) if draws is None else self._augment(image, draws[i])
            out[i] = np.asarray(shown)
        return out

    def fingerprint(self) -> str:
        """Return a sha256 over the encoded content, the rows used, the labels and the views."""
        total = hashlib.sha256(f"{self._store.digest()} {self._size} {self._view}".encode())
        total.update(self._rows.tobytes())
        total.update(self.targets.tobytes())
        return total.hexdigest()

    def check(self, limit: int) -> None:
        """Read the header of every image, or of ``limit`` evenly spaced ones where there are more.

        Raises:
            SourceError: An image is unreadable; the message names it.
        """
        step = max(1, math.ceil(len(self) / limit))
        for row in self._rows[::step]:
            with _named(self._store, int(row)), self._store.open(int(row)):
                pass

    def _decode(self, row: int) -> Image.Image:
        with _named(self._store, row), self._store.open(row) as image:
            return rgb(image)

    def _augment(self, image: Image.Image, draws: npt.NDArray[np.float64]) -> Image.Image:
        crop = image.crop(crop_box(image.width, image.height, draws[:-1], self._view.least))
        crop = crop.resize((self._size, self._size), Image.Resampling.BICUBIC)
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self._view.flip and draws[-1] < 0.5 else crop


class ArrayImages:
    """Images in memory: batches are slices, without augmentation.

    Args:
        inputs: Images, uint8 ``(N, H, W, 3)``.
        targets: Labels ``(N,)``.
    """

    decodes = False

    def __init__(self, inputs: npt.NDArray[np.uint8], targets: npt.ArrayLike) -> None:
        """Hold the arrays; pixels that do not lie image by image are copied once, as reading them would be slow."""
        self.targets: IntArray = np.asarray(targets, dtype=np.int64)
        assert inputs.dtype == np.uint8
        assert inputs.shape[:1] == self.targets.shape
        self._inputs = np.ascontiguousarray(inputs)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.targets)

    def batch(self, index: IntArray, rng: np.random.Generator | None = None) -> npt.NDArray[np.uint8]:
        """Return a fresh copy ``(B, H, W, 3)``; both views are the image itself."""
        return np.take(self._inputs, index, axis=0)

    def fingerprint(self) -> str:
        """Return the sha256 of shape, pixels and labels."""
        total = hashlib.sha256(repr(self._inputs.shape).encode())
        total.update(self._inputs.tobytes())
        total.update(self.targets.tobytes())
        return total.hexdigest()


class _Subset:
    def __init__(self, data: Data, index: IntArray) -> None:
        self.targets: IntArray = data.targets[index]
        self.decodes = data.decodes
        self._data, self._index = data, index

    def __len__(self) -> int:
        return len(self._index)

    def batch(self, index: IntArray, rng: np.random.Generator | None = None) -> Inputs:
        return self._data.batch(self._index[index], rng)

    def fingerprint(self) -> str:
        total = hashlib.sha256(self._data.fingerprint().encode())
        total.update(self._index.tobytes())
        return total.hexdigest()


def subset(data: Data, index: npt.ArrayLike) -> Data:
    """Return a view of ``data`` at ``index`` ``(M,)``, for few-shot and reordered sets."""
    return _Subset(data, np.asarray(index, dtype=np.int64))


def rgb(image: Image.Image) -> Image.Image:
    """Return any image as 8-bit RGB: 16 bits are scaled down, transparent pixels shown on white.

    Floating-point images are taken to lie in [0, 255].
    """
    if image.mode.startswith("I"):
        deep = np.clip(np.asarray(image).astype(np.int64), 0, 65535) // 257
        return Image.fromarray(deep.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(np.clip(np.asarray(image), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def centre(image: Image.Image, size: int, resize: float = 1.0) -> Image.Image:
    """Return the test view: the shorter side resized to ``resize * size`` (bicubic), the centre cropped."""
    short, target = min(image.size), round(resize * size)
    width, height = (target if s == short else int(target * s / short) for s in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def crop_box(width: int, height: int, draws: npt.NDArray[np.float64], least: float = 0.9) -> tuple[int, int, int, int]:
    """Return torchvision's random resized crop from 22 uniform draws: ten tries of (area, aspect), (x, y).

    The crop's area is between ``least`` and 1 of the image's. Where no try fits, the largest centred box within
    the aspect's limits is taken.
    """
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for area, aspect in draws[: 2 * TRIES].reshape(TRIES, 2):
        pixels = width * height * (least + area * (1 - least))
        ratio = math.exp(low + aspect * (high - low))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(draws[2 * TRIES] * (width - w + 1))
            top = int(draws[2 * TRIES + 1] * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, max(1, round(height * RATIO[1]))), min(height, max(1, round(width / RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


@contextmanager
def _named(store: Store, row: int) -> Iterator[None]:
    try:
        yield
    # Pillow's plugins raise whatever a broken byte leads to (struct.error, zlib.error, IndexError, ...).
    except Exception as error:
        raise SourceError(
            f"Expected a readable image at {store.where(row)}; got {type(error).__name__}: {error}. "
            "Replace the image, or remove it and its label."
        ) from error


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remembered_sha256(path: Path) -> str:
    """Hash a large file once: the result is kept under its path, size and time of change."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()
    kept = data_directory() / "digests" / key
    if kept.is_file():
        return kept.read_text("ascii")
    digest = _file_sha256(path)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=kept.parent, delete=False) as file:
        file.write(digest)
    Path(file.name).replace(kept)
    return digest
