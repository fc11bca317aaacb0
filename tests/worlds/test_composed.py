"""Composed scenes and their boxes."""

from __future__ import annotations

import numpy as np
import pytest

from clgym.errors import SettingError
from clgym.worlds import composed


def test_the_first_scenes_of_many_are_those_of_few() -> None:
    few, many = composed.draw("test", 3), composed.draw("test", 70)
    assert np.array_equal(few.pictures, many.pictures[:3])
    assert np.array_equal(few.boxes, many.boxes[:3])
    assert not np.array_equal(few.pictures, composed.draw("train", 3).pictures)


def test_scenes_have_one_to_three_things_of_all_classes_inside_the_picture() -> None:
    scenes = composed.draw("train", 256)
    assert scenes.pictures.shape == (256, 64, 64, 3)
    assert scenes.pictures.dtype == np.uint8
    assert scenes.boxes.dtype == np.float32
    there = scenes.boxes[..., 0] >= 0
    assert set(there.sum(1).tolist()) == {1, 2, 3}
    assert (np.diff(there.astype(int), axis=1) <= 0).all()  # rows without an object come last
    assert set(scenes.boxes[there][:, 0].astype(int).tolist()) == set(range(len(composed.CLASSES)))
    centre, size = scenes.boxes[there][:, 1:3], scenes.boxes[there][:, 3:]
    assert (centre - size / 2 >= 0).all()
    assert (centre + size / 2 <= 1).all()
    assert (size >= 3 / 64).all()
    assert (scenes.boxes[~there] == (-1, 0, 0, 0, 0)).all()


def test_boxes_are_tight_around_what_is_painted() -> None:
    cover = np.zeros((32, 32), np.float32)
    cover[10:14, 20:30] = 1.0
    cover[15, 3] = 0.4  # less than half
    assert composed._box(cover, 16, 8) == (41 / 64, 20 / 64, 10 / 64, 4 / 64)


def test_a_thing_hides_the_ground_under_it_and_leaves_the_rest() -> None:
    cover, colour = composed._sprites(np.random.default_rng(0), np.arange(len(composed.CLASSES)))
    assert cover.min() >= 0
    assert cover.max() <= 1 + 1e-6
    for of, painted in zip(cover, colour, strict=True):
        assert 0.05 < of.mean() < 0.6
        assert not painted[:, of == 0].any()


def test_unknown_splits_and_no_scenes_are_refused() -> None:
    with pytest.raises(SettingError, match="Expected split 'train' or 'test'; got 'val'"):
        composed.draw("val", 1)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="Expected at least 1 scene; got 0"):
        composed.draw("test", 0)
