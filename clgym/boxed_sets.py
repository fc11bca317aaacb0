"""Pictures with objects from Parquet files with the columns of the hub's COCO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from clgym.boxes import BoxedImages
from clgym.errors import SourceError
from clgym.events import IntArray
from clgym.folder import no_progress_bars, parquet_footer
from clgym.images import ArrowStore, EncodedImages, data_directory, rgb
from clgym.scenario import Task

COLUMNS = ("image", "width", "height", "objects")
READINGS = ("", "corners", "sizes")
_SCHEMA = (
    "Write the columns image (datasets.Image), width and height (pixels) and objects, a struct of the lists category "
    "(datasets.ClassLabel, or texts) and bbox (four numbers each, pixels)"
)


@dataclass(frozen=True)
class Pictures:
    """What Parquet files hold.

    Attributes:
        store: The encoded pictures.
        counts: Number of objects of each, int64 ``(N,)``.
        categories: Of all objects one after another: class numbers, or texts, ``(K,)``.
        boxes: Their boxes as shares of the picture: centre x, centre y, width, height, float64 ``(K, 4)``.
        names: Class names of the schema, or none.
    """

    store: ArrowStore
    counts: IntArray
    categories: npt.NDArray[Any]
    boxes: npt.NDArray[np.float64]
    names: tuple[str, ...]


class SquareImages(EncodedImages):
    """Encoded pictures, each squeezed to a square (bicubic), so that shares of sides stay what they are."""

    def batch(self, index: IntArray, rng: np.random.Generator | None = None) -> npt.NDArray[np.uint8]:
        """Return fresh pictures ``(B, size, size, 3)``; nothing is drawn.

        Raises:
            SourceError: A picture cannot be decoded; the message names it.
        """
        del rng
        out = np.empty((len(index), self._size, self._size, 3), dtype=np.uint8)
        for i, row in enumerate(self._rows[index]):
            out[i] = np.asarray(self._decode(int(row)).resize((self._size, self._size), Image.Resampling.BICUBIC))
        return out

    def _decode(self, row: int) -> Image.Image:
        return rgb(super()._decode(row))


def read_pictures(files: Sequence[Path], reading: str = "") -> Pictures:
    """Convert Parquet files once to memory-mapped Arrow and return their pictures and objects.

    Args:
        files: The files, in row order.
        reading: What the four numbers of a box are: ``"corners"`` (left, top, right, bottom) or ``"sizes"`` (left, top,
            width, height), pixels; ``""``: whichever of the two keeps every box in its picture.

    Raises:
        SourceError: A file is unreadable, lacks a column, has one of the wrong type, or boxes fit no reading or both.
    """
    import datasets
    import pyarrow as pa

    counts = [(file, parquet_footer(file, COLUMNS, _SCHEMA)) for file in files]
    cache = data_directory() / "arrow"
    try:
        with no_progress_bars():
            table = datasets.Dataset.from_parquet(
                [str(file) for file in files], cache_dir=str(cache), columns=list(COLUMNS)
            )
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        raise SourceError(
            f"Expected to convert {', '.join(map(str, files))} to Arrow in {cache}; got {type(cause).__name__}: "
            f"{cause}. Export the files again, or let CLGYM_DATA name a writable directory with enough space."
        ) from error
    try:
        lengths, categories, boxes = _flat(table.data.column("objects").combine_chunks())
    except (KeyError, ValueError, AttributeError, pa.ArrowException) as error:
        raise SourceError(
            f"Expected objects with category and bbox in {files[0]}; got {error!r}. {_SCHEMA}."
        ) from error
    sides = np.column_stack([table.data.column(name).to_numpy() for name in ("width", "height")]).astype(np.float64)
    shares = as_shares(boxes, np.repeat(sides, lengths, axis=0), reading, str(files[0]))
    names = next(_class_names(table.features["objects"]), ())
    return Pictures(ArrowStore(table.data.column("image"), counts), lengths, categories, shares, names)


def _flat(column: Any) -> tuple[IntArray, npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Return the number of objects of each row, and their categories and boxes ``(K, 4)``."""
    import pyarrow as pa

    if pa.types.is_struct(column.type):  # a struct of lists, as datasets writes it
        lists = column.field("category"), column.field("bbox")
        lengths = lists[0].value_lengths()
        if not lengths.equals(lists[1].value_lengths()):
            raise ValueError("lists of different lengths")
        category, bbox = (part.flatten() for part in lists)
    else:
        lengths, whole = column.value_lengths(), column.flatten()
        category, bbox = whole.field("category"), whole.field("bbox")
    numbers = bbox.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    return (
        lengths.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64),
        category.to_numpy(zero_copy_only=False),
        numbers.reshape(len(category), 4),
    )


def _class_names(feature: Any) -> Iterator[tuple[str, ...]]:
    """Yield the names of every ClassLabel in a feature."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        yield tuple(feature.names)
    inner = feature.values() if isinstance(feature, dict) else [getattr(feature, "feature", None)]
    for part in inner:
        if part is not None:
            yield from _class_names(part)


def as_shares(
    boxes: npt.NDArray[np.float64], sides: npt.NDArray[np.float64], reading: str, place: str
) -> npt.NDArray[np.float64]:
    """Return boxes as centre and size in shares of their picture, cut off at its edges, ``(K, 4)``.

    Args:
        boxes: ``(K, 4)``, pixels.
        sides: Width and height of the picture of each, ``(K, 2)``, pixels.
        reading: See :func:`read_pictures`.
        place: Where they are, for messages.

    Raises:
        SourceError: The boxes leave their pictures in every reading, or fit both.

    >>> as_shares(np.array([[30.0, 20, 90, 80]]), np.array([[100.0, 100]]), "", "x").round(2).tolist()
    [[0.6, 0.5, 0.6, 0.6]]
    """
    first, second, slack = boxes[:, :2], boxes[:, 2:], 1.0  # rounding of a pixel
    ends = {"corners": second, "sizes": first + second}
    fits = {
        name: bool(((end >= first) & (end <= sides + slack)).all() and (first >= -slack).all())
        for name, end in ends.items()
    }
    known = [name for name in fits if fits[name] and reading in ("", name)]
    if len(known) != 1 and len(boxes):
        what = "fit both" if known else f"fit neither{f' as {reading}' if reading else ''}"
        raise SourceError(
            f"Expected boxes of {place} as corners (left, top, right, bottom) or sizes (left, top, width, height), in "
            f"pixels of their picture; got some that {what}. Say which with boxes=corners or boxes=sizes, or mend them."
        )
    low, high = (np.clip(corner / sides, 0, 1) for corner in (first, ends[(known or ["corners"])[0]]))
    return np.concatenate([(low + high) / 2, high - low], axis=1)


def boxed_task(name: str, title: str, halves: tuple[Pictures, Pictures], size: int, classes: int | None = None) -> Task:
    """Return training and test pictures as a task; pictures without an object and boxes without an area are left out.

    Args:
        name: Of the task.
        title: Its own name.
        halves: Training and test pictures.
        size: Side of the images that the task gives, pixels.
        classes: How many there must be; ``None``: any number.

    Raises:
        SourceError: The halves have different class names, a class has no object to learn from, or there are too few.
    """
    train, test = halves
    if train.names != test.names:
        raise SourceError(f"Expected the same class names in all files of {title}; got others. Export them together.")
    if train.names:
        names, numbers = train.names, [half.categories.astype(np.int64) for half in halves]
        low, high = (int(edge(part, initial=0)) for part in [np.concatenate(numbers)] for edge in (np.min, np.max))
        if low < 0 or high >= len(names):
            raise SourceError(
                f"Expected categories from 0 to {len(names) - 1} in {title}; got {low} to {high}. "
                "Export the files again."
            )
    else:
        names = tuple(map(str, np.unique(train.categories.astype(str))))
        numbers = [np.searchsorted(names, half.categories.astype(str)) for half in halves]
        unknown = sorted(set(map(str, test.categories)) - set(names))
        if unknown:
            raise SourceError(
                f"Expected the classes of {title} in its training data; got {unknown[0]!r} only in the test. "
                "Add training pictures of it, or remove its objects."
            )
    taught = np.isin(np.arange(len(names)), numbers[0])
    if not taught.all() or len(names) < 2 or len(names) != (classes or len(names)):
        got = f"{int(taught.sum())} of {len(names)} with one"
        raise SourceError(
            f"Expected {classes or 'two or more'} classes in {title}, each with an object to learn from; got {got}. "
            "Add pictures, or leave the class out."
        )
    data = [_data(half, of, size) for half, of in zip(halves, numbers, strict=True)]
    words = tuple(name.replace("_", " ") for name in names)
    about = f"{title}: {len(words)} classes of objects in {len(data[0])} training and {len(data[1])} test images."
    return Task(name, about, words, tuple((word,) for word in words), data[0], data[1])


def _data(half: Pictures, classes: IntArray, size: int) -> BoxedImages:
    seen = (half.boxes[:, 2:] > 0).all(axis=1)
    owner = np.repeat(np.arange(len(half.counts)), half.counts)[seen]
    counts = np.bincount(owner, minlength=len(half.counts))
    rows = np.flatnonzero(counts)
    if not len(rows):
        raise SourceError(f"Expected objects in {half.store.where(0)}; got none in the whole file. Add some.")
    images = SquareImages(half.store, np.zeros(len(rows)), size, rows=rows)
    return BoxedImages(images, np.column_stack([classes[seen], half.boxes[seen]]), counts[rows])
