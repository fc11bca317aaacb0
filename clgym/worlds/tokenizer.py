"""A small word tokenizer with its own vocabulary; unknown words are spelled letter by letter."""

from __future__ import annotations

import functools
import hashlib
import re
import string

import torch

from clgym.worlds.tables import KINDS

CONTEXT_LENGTH = 16
# The vocabulary is padded to this size, so that new words do not change the model's shape.
VOCABULARY_SIZE = 512

_PAD = "<pad>"
_LETTERS = (*string.ascii_lowercase, *string.digits)
_EXTRA = """
a an the of in on at to and or with without from by for under over near this that is are one two three four
five six seven eight nine ten no not some many few very small large big tiny long short old new young wild
photo picture image drawing view close portrait type kind breed model number digit written hand letter word
animal insect plant vehicle tool fruit vegetable food drink texture surface scene place building water sky
land seen space blurry bright clean apple banana orange lemon pear bread butter cup bowl plate spoon fork
knife pan phone book pen paper bag box ball table desk sofa bed door window wall floor roof garden park
street bridge tower church castle boat airplane plane automobile bicycle motorcycle train bus tractor horse
cow sheep pig goat deer bear lion tiger wolf fox monkey elephant snake turtle bee spider ant shark whale
dolphin crab bird duck goose owl eagle chicken rose orchid iris sunflower leaf grass wood stone metal glass
cloth leather fur sand snow ice fire rain cloud sun moon star sea ocean island hill valley river road rail
shirt shoe dress coat sock glove ring crown guitar piano drum camera computer red orange yellow green blue
purple pink white grey gray black brown round square flat hot cold day morning evening man woman child boy
girl baby people face eye ear nose mouth head arm leg foot tail wing nothing something t v
""".split()


@functools.cache
def _vocabulary() -> dict[str, int]:
    """Number every known word: padding, letters and digits, words in alphabetical order, start, end."""
    words = set(_EXTRA)
    for kind in KINDS:
        texts = [*kind.templates, *kind.captions, *(name for name, _ in kind.classes)]
        texts += [word for _, values in kind.attributes for word in values]
        for text in texts:
            words.update(_words(re.sub(r"{\w*}", "", text)))
    tokens = [_PAD, *_LETTERS, *sorted(words - set(_LETTERS))]
    assert len(tokens) <= VOCABULARY_SIZE - 2, len(tokens)
    return {token: number for number, token in enumerate(tokens)}


def vocabulary_sha256() -> str:
    """Return the hash of all tokens in their order, which weights and vocabulary must share."""
    return hashlib.sha256(" ".join(_vocabulary()).encode()).hexdigest()


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]", text.lower())


class WordTokenizer:
    """Turns texts into token numbers, called like open_clip's tokenizers.

    The end-of-text token has the highest number, since open_clip reads a text's feature off the position of
    the highest one. Case, punctuation and letters outside a-z do not count. A text that is too long is cut,
    and ends in the end-of-text token all the same.

    >>> tokenizer = WordTokenizer()
    >>> bool((tokenizer("A red mug!") == tokenizer(["a red mug"])).all())
    True
    """

    start = VOCABULARY_SIZE - 2
    end = VOCABULARY_SIZE - 1

    def __init__(self, context_length: int = CONTEXT_LENGTH) -> None:
        """Take the number of tokens of every text."""
        self.context_length = context_length

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens without start, end and padding."""
        known = _vocabulary()
        tokens: list[int] = []
        for word in _words(text):
            tokens.extend([known[word]] if word in known else [known[letter] for letter in word])
        return tokens

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> torch.LongTensor:
        """Tokenize texts.

        Args:
            texts: One text or several.
            context_length: Tokens per text, when not the tokenizer's own.

        Returns:
            Token numbers `(N, context_length)`, padded with 0.
        """
        length = context_length or self.context_length
        texts = [texts] if isinstance(texts, str) else texts
        out = torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in zip(out, texts, strict=True):
            tokens = [self.start, *self.encode(text)[: length - 2], self.end]
            row[: len(tokens)] = torch.tensor(tokens)
        return torch.LongTensor(out)
