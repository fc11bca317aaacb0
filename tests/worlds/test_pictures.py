"""The picture world: determinism, balance, splits, held-out combinations."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from clgym.errors import NotRegisteredError, SettingError
from clgym.worlds import captions, pictures, tables


def test_order_and_size_are_those_of_the_benchmark() -> None:
    assert pictures.DOMAINS == (
        "aircraft", "objects", "small_objects", "textures", "satellite", "flowers",
        "dishes", "digits", "pets", "cars", "scenes",
    )  # fmt: skip
    sizes = [len(pictures.domain(name).classes) for name in pictures.DOMAINS]
    assert all(5 <= size <= 20 for size in sizes)
    assert 120 <= sum(sizes) <= 150


@pytest.mark.parametrize("name", pictures.DOMAINS)
def test_domain_is_well_formed(name: str) -> None:
    info = pictures.domain(name)
    assert len(set(info.classes)) == len(info.classes)
    assert info.template == info.templates[0]
    assert all(template.count("{}") == 1 for template in info.templates)
    assert info.description.endswith(".")


@pytest.mark.parametrize("name", pictures.DOMAINS)
def test_pictures_are_balanced_uint8_and_differ_within_a_class(name: str) -> None:
    inputs, labels = pictures.draw(name, "train", 6)
    classes = len(pictures.domain(name).classes)
    assert inputs.shape == (classes * 6, 32, 32, 3)
    assert inputs.dtype == np.uint8
    assert labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [6] * classes
    assert len({picture.tobytes() for picture in inputs}) == len(inputs)


@pytest.mark.parametrize("name", pictures.DOMAINS)
def test_draw_does_not_depend_on_what_was_drawn_before(name: str) -> None:
    first, _ = pictures.draw(name, "test", 3)
    np.random.default_rng(0).random(7)
    pictures.draw(pictures.DOMAINS[0], "train", 2)
    second, _ = pictures.draw(name, "test", 3)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", pictures.DOMAINS)
def test_train_and_test_share_no_picture(name: str) -> None:
    train = {picture.tobytes() for picture in pictures.draw(name, "train", 40)[0]}
    test = {picture.tobytes() for picture in pictures.draw(name, "test", 20)[0]}
    assert not train & test


def test_digits_are_the_real_scans() -> None:
    from sklearn.datasets import load_digits

    scans = load_digits()
    inputs, labels = pictures.draw("digits", "train", 2)
    first_three = scans.images[scans.target == 3][0]
    # Averaging 4 x 4 blocks of the enlarged picture comes close to the scan's own pixels.
    back = inputs[labels == 3][0][..., 0].reshape(8, 4, 8, 4).mean((1, 3)) / 255 * 16
    assert np.abs(back - first_three).mean() < 1.5
    assert np.corrcoef(back.ravel(), first_three.ravel())[0, 1] > 0.95


def test_errors_say_what_to_do() -> None:
    with pytest.raises(NotRegisteredError, match="Did you mean 'aircraft'"):
        pictures.domain("aircrafts")
    with pytest.raises(SettingError, match="Name one of the two"):
        pictures.draw("pets", "valid", 2)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="Ask for more"):
        pictures.draw("pets", "test", 0)
    with pytest.raises(SettingError, match="Ask for fewer"):
        pictures.draw("digits", "test", 500)


@pytest.mark.parametrize("kind", [kind for kind in tables.KINDS if kind.attributes], ids=lambda kind: kind.name)
def test_no_class_is_among_the_captioned_pictures(kind: tables.Kind) -> None:
    drawn = captions.sample_combinations(kind, np.random.default_rng(0), 2000)
    for name, look in kind.classes:
        wanted = [
            -1 if word == tables.FREE else values.index(word)
            for (_, values), word in zip(kind.attributes, look.split(), strict=True)
        ]
        match = (drawn == wanted) | (np.asarray(wanted) == -1)
        assert not match.all(1).any(), name


@pytest.mark.parametrize("kind", [kind for kind in tables.KINDS if kind.attributes], ids=lambda kind: kind.name)
def test_every_value_but_five_textures_is_captioned_and_classes_differ(kind: tables.Kind) -> None:
    drawn = captions.sample_combinations(kind, np.random.default_rng(0), 2000)
    unseen = {"lined", "dotted", "checked", "woven", "cracked"} if kind.name == "textures" else set()
    for column, (_, values) in enumerate(kind.attributes):
        seen = {values[i] for i in drawn[:, column]}
        assert set(values) - seen == unseen & set(values)
    classes = kind.combinations()
    for i, one in enumerate(classes):
        for other in classes[i + 1 :]:
            assert ((one != other) & (one >= 0) & (other >= 0)).any(), (one, other)


def test_corpus_follows_its_generator() -> None:
    first, texts = captions.corpus(np.random.default_rng(3), 100)
    again, same = captions.corpus(np.random.default_rng(3), 100)
    other, _ = captions.corpus(np.random.default_rng(4), 100)
    assert texts == same
    assert len(texts) == len(first) == 100
    np.testing.assert_array_equal(first, again)
    assert hashlib.sha256(other.tobytes()).digest() != hashlib.sha256(first.tobytes()).digest()


def test_captions_hold_no_class_name_that_is_bound_to_a_look_by_training_alone() -> None:
    _, texts = captions.corpus(np.random.default_rng(0), 4000)
    said = set(" ".join(texts).replace(",", "").split())
    assert not said & {"trout", "galleon", "admiral", "highway", "orchard", "gingham", "pinstriped", "digit"}
