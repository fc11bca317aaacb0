"""A small word tokenizer with its own vocabulary; unknown words are spelled letter by letter."""

from __future__ import annotations

import functools
import hashlib
import re
import string

import torch

CONTEXT_LENGTH = 16
# The vocabulary is padded to this size, so that new words do not change the model's shape.
VOCABULARY_SIZE = 512

_PAD = "<pad>"
_LETTERS = (*string.ascii_lowercase, *string.digits)
# A literal list: were it gathered from the class tables, renaming a class would renumber every word of the
# pre-trained model. A new word goes here, and the model is pre-trained anew.
_VOCABULARY = """
admiral aircraft airplane an and animal ant apple are arm aster at automobile baby bag ball banana banded
basil beach bear bed bee bell bend berry bicycle big bird black blocks blue blurry boat book borealis bottle
bowl box boy braided bread breed bridge bright brown building bullfrog bus butter butterfly by cake camera
car castle cat chair checked cheese chicken child church city clean clock close cloth cloud cloudy coarse
coat cold computer condor coupe cow crab cracked crazed crown cup daisy dark day deer delta desert desk
digit dog dolphin door dots dotted drawing dress drink drum duck eagle ear egg eight elephant empty engine
engines evening eye face factory falcon few field fine fire fish five flat floor flower food foot for forest
fork four fox frog from fruit fur galleon garden ginger gingham girl glass glove goat goose grass gray green
grey guitar hand hat hatchback head heron highway hill horse hot house ice image in insect iris is island
jaguar kestrel key kind knife lake lamp land large leaf leather leg lemon letter lily lined lion long lorry
lynx man many masked meadow merlin metal misty model monarch monkey moon morning motorcycle mountain mouse
mouth mug mushroom mustang near new night nine no nose not nothing number ocean of old olive on one or
orange orchid osprey over owl pan pansy paper park pasta pear pen people perch pet phone photo piano pickup
picture pig pink pinstriped pizza place plain plane plant plate poppy portrait purple rabbit rail rain red
rice ring ringed river road robin rocket roof rose round rows sailboat salad sand satellite scene sea sedan
seen seven shark sheep ship shirt shoe short six sky slabs slim small snake snow sock sofa some something
soup space spider spoon spotted square star stone straight street striped sun sunflower sunny sunset surface
swept tabby table tail tan ten texture that the this three tiger tiny to toad tomato tool tower tractor
train tree trout truck tulip turtle two type umbrella under valley van vegetable vehicle very view wall
water wavy whale wheels white wide wild window wing wings with without wolf woman wood word woven written
yellow young zero
"""


@functools.cache
def _numbers() -> dict[str, int]:
    """Number every known token: padding, letters and digits, then words."""
    tokens = (_PAD, *_LETTERS, *_VOCABULARY.split())
    assert len(tokens) <= VOCABULARY_SIZE - 2, len(tokens)
    return {token: number for number, token in enumerate(tokens)}


def vocabulary_sha256() -> str:
    """Return the hash of all tokens in their order, which weights and vocabulary must share."""
    return hashlib.sha256(" ".join(_numbers()).encode()).hexdigest()


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
        known = _numbers()
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
