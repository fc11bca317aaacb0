"""Image data sets on the Hugging Face hub: where they are, at which revision, and how streams use them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from clgym.images import data_directory


@dataclass(frozen=True, slots=True)
class HubSet:
    """One data set on the hub, and how streams use it.

    Attributes:
        name: Key in :data:`SETS`.
        repo: ``owner/name`` on the hub.
        revision: Commit, 40 hex digits; ``"main"`` where no commit could be verified, which the notes say.
        classes: Number of classes after dropping.
        sizes: Rows of every split read, ``(split, rows)``; anything else is refused.
        train_split: Splits to train on, joined by ``+``.
        test_split: Splits to test on, joined by ``+``.
        image_column: Column of the encoded images.
        label_column: Column of the labels: a ``ClassLabel``, or texts where ``text`` says so.
        rule: ``"given"``: the splits as they are; ``"half"``: half of each training class, drawn with
            :data:`SEED`; ``"80/20"``: both splits pooled and drawn anew with :data:`SEED`; ``"stratified"``: the
            only split drawn anew with :data:`SEED`, four fifths of every class to train on.
        text: Whether labels are texts; classes are then numbered in their alphabetical order.
        first: Use the first so many classes only, which must be those that ``hub.json`` lists; 0 uses all.
        files: What is fetched.
        gated: Whether the hub asks to accept terms first.
        scenario: A scenario that reads it, for messages.
    """

    name: str
    repo: str
    revision: str
    classes: int
    sizes: tuple[tuple[str, int], ...]
    train_split: str = "train"
    test_split: str = "test"
    image_column: str = "image"
    label_column: str = "label"
    rule: Literal["given", "half", "80/20", "stratified"] = "given"
    text: bool = False
    first: int = 0
    files: tuple[str, ...] = ("*.parquet", "README.md")
    gated: bool = False
    scenario: str = "CLIP-MTIL-v0"

    @property
    def title(self) -> str:
        """The data set's own name."""
        return str(class_lists()[self.name]["title"])

    @property
    def templates(self) -> tuple[str, ...]:
        """Prompt templates, ZSCL's where it has the set, the training one first."""
        return tuple(class_lists()[self.name]["templates"])

    @property
    def licence(self) -> str:
        """The licence as the publisher states it."""
        return str(class_lists()[self.name]["licence"])

    @property
    def notes(self) -> str:
        """What differs from the paper's data, and the traps."""
        return str(class_lists()[self.name]["notes"])

    @property
    def folder(self) -> Path:
        """Where :func:`download` puts the files."""
        return data_directory().joinpath(*self.repo.split("/"), self.revision)


SETS: dict[str, HubSet] = {
    data.name: data
    for data in (
        HubSet(
            "aircraft",
            "mteb/FGVCAircraft",
            "3ae0e4e94e37c610c26df758ec3255fa90d80e67",
            100,
            (("train", 3_334), ("test", 3_333)),
            label_column="variant",
        ),
        HubSet(
            "caltech101",
            "mteb/Caltech101",
            "011e51e5fb01f0c820824734edb7a539ab8e6650",
            101,
            (("train", 3_060), ("test", 6_084)),
            train_split="train+test",
            test_split="train+test",
            rule="80/20",
        ),
        HubSet(
            "cifar100",
            "mteb/cifar100",
            "ac5511f885f65fb75d31a9d8810a8440913f7721",
            100,
            (("train", 50_000), ("test", 10_000)),
            image_column="img",
            label_column="fine_label",
        ),
        HubSet(
            "dtd",
            "mteb/dtd",
            "96726183040de9e64a590d08eaac8de940dfcbdf",
            47,
            (("train", 3_760), ("test", 1_880)),
            rule="half",
        ),
        HubSet(
            "eurosat",
            "mteb/eurosat-rgb",
            "da02b77448e750b3b034e0b5da008167b9706571",
            10,
            (("train", 16_200), ("validation", 5_400), ("test", 5_400)),
            train_split="train+validation",
        ),
        HubSet(
            "flowers",
            "dpdl-benchmark/oxford_flowers102",
            "544b55c9af69a05742ead7571cd7ae23cfcd758b",
            102,
            (("train", 1_020), ("test", 6_149)),
        ),
        HubSet(
            "food",
            "mteb/food101",
            "7cca05bfde8fdad4a9b39ed14a881c800cc1dca2",
            101,
            (("train", 75_750), ("validation", 25_250)),
            test_split="validation",
        ),
        HubSet(
            "mnist",
            "mteb/mnist",
            "cf6afcbae72cc3bb1fc07a9480fe0d8e0b615fcd",
            10,
            (("train", 60_000), ("test", 10_000)),
        ),
        HubSet(
            "oxford_pet",
            "mteb/OxfordPets",
            "557b480fae8d69247be74d9503b378a09425096f",
            37,
            (("train", 3_680), ("test", 3_669)),
        ),
        HubSet(
            "stanford_cars",
            "mteb/StanfordCars",
            "09ffe9bc7864d3f1e851529e5c4b7e05601a04fb",
            196,
            (("train", 8_144), ("test", 8_041)),
        ),
        HubSet(
            "sun397",
            "mteb/sun397",
            "c684cff33166060e2ae05525a5c4abdf5e6d7bce",
            397,
            (("train", 76_127), ("test", 21_750)),
        ),
        HubSet(
            "resisc45",
            "timm/resisc45",
            "fe12fc5f1b7606543b0355eda392f1ddc54625c6",
            45,
            (("train", 18_900), ("test", 6_300)),
            scenario="ViT-VTAB-CIL-v0",
        ),
        HubSet(
            "imagenet_r",
            "axiong/imagenet-r",
            "762a23f169e080bef0be7c9d96bf73a126cbb660",
            200,
            (("test", 30_000),),
            train_split="test",
            label_column="wnid",
            rule="stratified",
            text=True,
            scenario="ViT-ImageNetR-CIL-v0",
        ),
        HubSet(
            "imagenet_a",
            "barkermrl/imagenet-a",
            "main",
            200,
            (("train", 7_500),),
            test_split="train",
            rule="stratified",
            scenario="ViT-ImageNetA-CIL-v0",
        ),
        HubSet(
            "imagenet100",
            "ILSVRC/imagenet-1k",
            "49e2ee26f3810fb5a7536bbf732a7b07389a47b5",
            100,
            (("train", 1_281_167), ("validation", 50_000)),
            test_split="validation",
            first=100,
            files=("data/train-*.parquet", "data/validation-*.parquet", "README.md"),
            gated=True,
            scenario="CLIP-ImageNet100-CIL-v0",
        ),
        HubSet(
            "coco",
            "detection-datasets/coco",
            "main",
            80,
            (("train", 117_266), ("val", 4_952)),
            test_split="val",
            label_column="objects",
            scenario="Detection-Erasure-v0",
        ),
    )
}

# The eleven of MTIL (ZSCL, arXiv:2303.06628), in its order I.
MTIL = tuple(SETS)[:11]


@cache
def class_lists() -> dict[str, dict[str, Any]]:
    """Return what ``hub.json`` says of every set: title, licence, notes, templates, class names."""
    text = Path(__file__).with_name("hub.json").read_text("utf-8")
    lists: dict[str, dict[str, Any]] = json.loads(text)
    return lists
