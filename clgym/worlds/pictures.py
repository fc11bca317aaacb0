"""Eleven domains of 32 x 32 pictures, in the kinds and the order of the MTIL benchmark.

The domains, their classes and their pictures are functions of a fixed data seed alone: whoever draws,
whenever and in whatever order, gets the same pictures. `REVISION` moves when any of them changes.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clgym.errors import NotRegisteredError, SettingError
from clgym.worlds import captions
from clgym.worlds.canvas import SIDE, Integers
from clgym.worlds.tables import KINDS, Kind

REVISION = "1"
DOMAINS: tuple[str, ...] = tuple(kind.name for kind in KINDS)
Split = Literal["train", "test"]

_DATA_SEED = 20_403
_KINDS = {kind.name: kind for kind in KINDS}
# The first scans of every digit are for training; the rarest digit has 174 scans.
_TRAIN_SCANS = 120


@dataclass(frozen=True)
class Domain:
    """What a learner may know about a domain before it sees a picture.

    Attributes:
        name: Short name, as in `DOMAINS`.
        title: The data set of the MTIL benchmark that the domain stands for.
        description: One sentence on what is to be told apart.
        classes: Class names, in the order of the labels.
        templates: Prompt templates with one `{}` for the class name; the first one is used in training.
    """

    name: str
    title: str
    description: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]

    @property
    def template(self) -> str:
        """The template used in training."""
        return self.templates[0]


def _kind(name: str) -> Kind:
    if name not in _KINDS:
        raise NotRegisteredError.among("domain", name, _KINDS)
    return _KINDS[name]


def domain(name: str) -> Domain:
    """Return a domain by name.

    Raises:
        NotRegisteredError: There is no such domain.

    >>> domain("digits").classes[:3]
    ('zero', 'one', 'two')
    """
    kind = _kind(name)
    classes = tuple(label for label, _ in kind.classes)
    return Domain(kind.name, kind.title, kind.description, classes, kind.templates)


def draw(name: str, split: Split, per_class: int) -> tuple[NDArray[np.uint8], Integers]:
    """Draw a domain's pictures, equally many of every class, class by class.

    Args:
        name: Domain, one of `DOMAINS`.
        split: `"train"` or `"test"`; no picture is in both.
        per_class: Pictures per class.

    Returns:
        Pictures `(N, 32, 32, 3)` uint8 and labels `(N,)` int64, with N = classes * per_class.

    Raises:
        NotRegisteredError: There is no such domain.
        SettingError: The split is unknown, or more pictures are asked for than there are.

    >>> pictures, labels = draw("aircraft", "test", 2)
    >>> pictures.shape, labels[:4].tolist()
    ((24, 32, 32, 3), [0, 0, 1, 1])
    """
    kind = _kind(name)
    if split not in ("train", "test"):
        raise SettingError(f"Expected split 'train' or 'test'; got {split!r}. Name one of the two.")
    if per_class < 1:
        raise SettingError(f"Expected at least 1 picture per class; got {per_class}. Ask for more.")
    labels = np.repeat(np.arange(len(kind.classes), dtype=np.int64), per_class)
    if not kind.attributes:
        return _scans(split, per_class), labels
    seed = (_DATA_SEED, DOMAINS.index(name), ("train", "test").index(split))
    rng = np.random.default_rng(seed)
    looks = kind.combinations()[labels]
    values = {}
    for column, (attribute, words) in enumerate(kind.attributes):
        free = rng.integers(0, len(words), len(labels))
        values[attribute] = np.where(looks[:, column] < 0, free, looks[:, column])
    return captions.paint(kind, rng, values), labels


@functools.cache
def _digits() -> tuple[NDArray[np.float32], Integers]:
    """Load scikit-learn's scans, `(1797, 8, 8)` in [0, 1], and their labels.

    Its file is read without its `load_digits`, whose import takes a second and a half: of scipy, mostly.
    """
    sklearn = importlib.util.find_spec("sklearn")
    assert sklearn is not None
    assert sklearn.origin is not None
    table = np.loadtxt(Path(sklearn.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return (table[:, :-1] / 16.0).reshape(-1, 8, 8).astype(np.float32), table[:, -1].astype(np.int64)


def _scans(split: Split, per_class: int) -> NDArray[np.uint8]:
    """Take the first scans of each digit (training) or those after them (test), enlarged to 32 x 32 RGB."""
    scans, labels = _digits()
    rows = []
    for digit in range(10):
        own = np.flatnonzero(labels == digit)
        own = own[:_TRAIN_SCANS] if split == "train" else own[_TRAIN_SCANS:]
        if per_class > len(own):
            raise SettingError(
                f"Expected at most {len(own)} {split} pictures of the digit {digit}; got {per_class}. Ask for fewer."
            )
        rows.append(own[:per_class])
    small = scans[np.concatenate(rows)]
    # Bilinear between the centres of the scan's pixels, the border repeated.
    at = np.clip((np.arange(SIDE) + 0.5) * 8 / SIDE - 0.5, 0, 7)
    low = np.minimum(at.astype(np.int64), 6)
    part = (at - low).astype(np.float32)
    tall = small[:, low] * (1 - part)[None, :, None] + small[:, low + 1] * part[None, :, None]
    large = tall[:, :, low] * (1 - part) + tall[:, :, low + 1] * part
    grey = (large * 255.0 + 0.5).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
