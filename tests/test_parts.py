"""Data made of parts: every sample is the one it was, wherever it was put."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clgym.events import Inputs, IntArray
from clgym.images import ArrayImages
from clgym.parts import Parts, changed, picked


def shades(*values: int) -> ArrayImages:
    """Return one-pixel images of these greys, labelled by position."""
    pixels = np.array(values, np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=-1)
    return ArrayImages(pixels, np.arange(len(values)))


@dataclass
class Words:
    """Texts, to see that inputs need not be images; remembers what the generator gave it."""

    texts: tuple[str, ...]
    decodes: bool = True

    @property
    def targets(self) -> IntArray:
        return np.arange(len(self.texts))

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, index: IntArray, rng: np.random.Generator | None = None) -> Inputs:
        return tuple(self.texts[i] + ("" if rng is None else str(rng.integers(9))) for i in index)

    def fingerprint(self) -> str:
        return "".join(self.texts)


def grey(inputs: Inputs) -> IntArray:
    assert isinstance(inputs, np.ndarray)
    return inputs[:, 0, 0, 0].astype(np.int64)


def test_samples_of_two_sets_stand_where_they_were_put() -> None:
    both = Parts([shades(10, 11, 12), shades(20, 21)], [1, 0, 0, 1], [1, 2, 0, 0], [7, 8, 9, 7])
    assert len(both) == 4
    assert grey(both.batch(np.array([0, 1, 2, 3]))).tolist() == [21, 12, 10, 20]
    assert grey(both.batch(np.array([3, 3, 2]))).tolist() == [20, 20, 10]
    assert grey(both.batch(np.array([1, 2]))).tolist() == [12, 10]
    assert both.targets.tolist() == [7, 8, 9, 7]
    assert not both.decodes


def test_texts_are_woven_too() -> None:
    both = Parts([Words(("a", "b")), Words(("c",))], [1, 0, 0], [0, 1, 0], [0, 1, 2])
    assert both.batch(np.array([0, 1, 2])) == ("c", "b", "a")
    assert both.batch(np.array([2, 0])) == ("a", "c")
    assert both.decodes


def test_the_training_view_is_drawn_from_the_generator_given() -> None:
    both = Parts([Words(("a", "b")), Words(("c",))], [1, 0, 0], [0, 1, 0], [0, 1, 2])
    views = [both.batch(np.array([0, 1, 2]), np.random.default_rng(seed)) for seed in (5, 5, 6)]
    assert views[0] == views[1] != views[2]


def test_batches_are_fresh() -> None:
    part = picked(shades(1, 2), [1], [0])
    batch = part.batch(np.array([0]))
    assert isinstance(batch, np.ndarray)
    batch[...] = 0
    assert grey(part.batch(np.array([0]))).tolist() == [2]


def test_parts_of_parts() -> None:
    part = picked(picked(shades(1, 2, 3, 4), [3, 2, 1], [0, 1, 2]), [2, 0], [5, 6])
    assert grey(part.batch(np.array([0, 1]))).tolist() == [2, 4]


def test_changes_come_after_reading() -> None:
    part = changed(shades(1, 2), lambda pixels: 255 - pixels)
    assert grey(part.batch(np.array([1, 0]))).tolist() == [253, 254]
    assert part.targets.tolist() == [0, 1]


def test_fingerprints_follow_samples_rows_labels_and_change() -> None:
    def negative(pixels: Inputs) -> Inputs:
        assert isinstance(pixels, np.ndarray)
        return np.asarray(255 - pixels)

    def upper(pixels: Inputs) -> Inputs:
        return pixels

    data = shades(1, 2)
    same = [picked(data, [0, 1], [0, 1]), picked(shades(1, 2), [0, 1], [0, 1])]
    others = [
        picked(shades(1, 3), [0, 1], [0, 1]),
        picked(data, [1, 0], [0, 1]),
        picked(data, [0, 1], [1, 0]),
        picked(data, [0], [0]),
        changed(data, negative),
        changed(data, upper),
    ]
    found = [part.fingerprint() for part in (*same, *others)]
    assert found[0] == found[1]
    assert len(set(found)) == len(others) + 1
    assert all(len(text) == 64 for text in found)
