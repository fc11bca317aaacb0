"""The word tokenizer."""

from __future__ import annotations

import torch

from clgym.worlds import pictures
from clgym.worlds.tokenizer import CONTEXT_LENGTH, VOCABULARY_SIZE, WordTokenizer


def test_end_of_text_is_the_highest_token_and_the_last_one() -> None:
    tokens = WordTokenizer()(["a red mug", "a photo of a ginger striped cat, a type of pet."])
    assert tokens.shape == (2, CONTEXT_LENGTH)
    assert tokens.dtype == torch.int64
    assert tokens[0].argmax() == 4
    assert (tokens.max(1).values == VOCABULARY_SIZE - 1).all()
    for row in tokens:
        assert (row[row.argmax() + 1 :] == 0).all()


def test_unknown_words_are_spelled() -> None:
    tokenizer = WordTokenizer()
    spelled = tokenizer.encode("t-shirt zyx9")
    assert spelled == [*tokenizer.encode("t"), *tokenizer.encode("shirt"), *tokenizer.encode("z y x 9")]
    assert 0 not in spelled


def test_long_texts_are_cut_and_still_end() -> None:
    tokens = WordTokenizer()("wxyz" * 20)
    assert tokens[0].argmax() == CONTEXT_LENGTH - 1
    assert (tokens != 0).all()


def test_context_length_can_be_given() -> None:
    assert WordTokenizer()("a mug", context_length=7).shape == (1, 7)
    assert WordTokenizer(9)("a mug").shape == (1, 9)


def test_all_class_prompts_fit_and_differ() -> None:
    tokenizer = WordTokenizer()
    for name in pictures.DOMAINS:
        info = pictures.domain(name)
        for template in info.templates:
            texts = [template.format(label) for label in info.classes]
            assert max(len(tokenizer.encode(text)) for text in texts) <= CONTEXT_LENGTH - 2
            assert len(set(map(tuple, tokenizer(texts).tolist()))) == len(texts)


def test_every_word_of_a_class_is_known_and_not_spelled() -> None:
    tokenizer = WordTokenizer()
    for name in pictures.DOMAINS:
        for label in pictures.domain(name).classes:
            assert len(tokenizer.encode(label)) == len(label.split()), label


def test_case_and_punctuation_do_not_count() -> None:
    tokenizer = WordTokenizer()
    assert torch.equal(tokenizer("A photo, of a Cat!"), tokenizer("a photo of a cat"))
