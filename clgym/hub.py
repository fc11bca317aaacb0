"""The eleven data sets of MTIL (ZSCL, arXiv:2303.06628) from the Hugging Face hub, at pinned revisions.

Nothing here touches the network except :func:`download`, which runs only when the user asks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from clgym.errors import NotRegisteredError, SourceError, SourceMissingError
from clgym.events import IntArray
from clgym.folder import parquet_rows, read_parquet
from clgym.images import ArrowStore, EncodedImages, data_directory, fill_prompts
from clgym.scenario import Task

SEED = 42


@dataclass(frozen=True, slots=True)
class HubSet:
    """One data set on the hub, and how MTIL uses it.

    Attributes:
        name: Key in :data:`SETS`.
        repo: ``owner/name`` on the hub.
        revision: Commit, 40 hex digits.
        classes: Number of classes after dropping.
        sizes: Rows of every split read, ``(split, rows)``; anything else is refused.
        train_split: Splits to train on, joined by ``+``.
        test_split: Splits to test on, joined by ``+``.
        image_column: Column of the encoded images.
        label_column: Column of the labels, a ``ClassLabel``.
        rule: ``"given"``: the splits as they are; ``"half"``: half of each training class, drawn with
            :data:`SEED`; ``"80/20"``: both splits pooled and drawn anew with :data:`SEED`.
        flip: Whether training may mirror images; off throughout, as in ZSCL, which only crops.
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
    rule: Literal["given", "half", "80/20"] = "given"
    flip: bool = False

    @property
    def title(self) -> str:
        """The data set's own name."""
        return str(_lists()[self.name]["title"])

    @property
    def templates(self) -> tuple[str, ...]:
        """ZSCL's prompt templates, the training one first."""
        return tuple(_lists()[self.name]["templates"])

    @property
    def licence(self) -> str:
        """The licence as the publisher states it."""
        return str(_lists()[self.name]["licence"])

    @property
    def notes(self) -> str:
        """What differs from ZSCL's data, and the traps."""
        return str(_lists()[self.name]["notes"])

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
    )
}


def missing(names: Sequence[str]) -> list[str]:
    """Return ``repo@revision`` of every set whose files are not all on this machine."""
    return [
        f"{data.repo}@{data.revision}"
        for data in map(_known, names)
        if not all(_complete(_files(data, split)) for split, _ in data.sizes)
    ]


def require(names: Sequence[str], scenario: str = "CLIP-MTIL-v0") -> None:
    """Do nothing if all sets are here.

    Raises:
        SourceMissingError: Some are not; the message lists them and the command that fetches them.
    """
    if absent := missing(names):
        raise SourceMissingError(
            f"Expected {len(names)} data sets of the hub in {data_directory()}; {len(absent)} missing: "
            f"{', '.join(absent)}. Run `clgym download {scenario}`, or let CLGYM_DATA name where they are."
        )


def download(names: Sequence[str], progress: Callable[[str], None] = print) -> None:
    """Fetch the Parquet files of the sets that are missing; what is here already is not fetched again.

    Raises:
        SourceMissingError: The hub could not be reached.
        SourceError: The revision does not hold the splits.
    """
    import huggingface_hub

    for number, data in enumerate(map(_known, names), 1):
        what = f"[{number}/{len(names)}] {data.title}: {data.repo}@{data.revision[:8]}"
        if not missing([data.name]):
            progress(f"{what} is here")
            continue
        progress(f"{what} to {data.folder}")
        try:
            huggingface_hub.snapshot_download(
                repo_id=data.repo,
                repo_type="dataset",
                revision=data.revision,
                local_dir=data.folder,
                allow_patterns=["*.parquet", "README.md"],
            )
        # The client's errors have no common base: its own, httpx's, OSError.
        except Exception as error:
            raise SourceMissingError(
                f"Expected to fetch {data.repo}@{data.revision}; got {type(error).__name__}: {error}. "
                "Check the network (and HF_HUB_OFFLINE) and run the command again: it resumes."
            ) from error
        if missing([data.name]):
            found = ", ".join(str(f.relative_to(data.folder)) for f in data.folder.rglob("*.parquet"))
            raise _changed(data, f"the splits {', '.join(dict(data.sizes))}", found or "no Parquet file")


def hub_tasks(names: Sequence[str], size: int, scenario: str = "CLIP-MTIL-v0") -> list[Task]:
    """Return the tasks in the order of ``names``; see :func:`hub_task`."""
    require(names, scenario)
    return [hub_task(name, size) for name in names]


def hub_task(name: str, size: int) -> Task:
    """Return one data set as a task, read from the local files only.

    Args:
        name: Key in :data:`SETS`.
        size: Side of the images that the task gives, in pixels.

    Raises:
        NotRegisteredError: No such set.
        SourceMissingError: Its files are not on this machine.
        SourceError: Columns, rows or classes are not those of the pinned revision.
    """
    data = _known(name)
    require([name])
    train = _read(data, data.train_split)
    test = train if data.test_split == data.train_split else _read(data, data.test_split)
    if train.names != test.names:
        raise _changed(data, "the same class names in all splits", "different ones")
    words = _reworded(data, train.names)
    classes = tuple(word for word in words if word is not None)
    if len(set(classes)) != data.classes:
        raise _changed(data, f"{data.classes} classes", str(len(set(classes))))
    number = np.cumsum([word is not None for word in words]) - 1
    kept = np.array([word is not None for word in words])
    rows = _rows(data, kept, train.labels, test.labels)
    sides = []
    for part, index in zip((train, test), rows, strict=True):
        targets = number[part.labels[index]]
        if empty := sorted(set(range(len(classes))) - set(targets.tolist())):
            raise _changed(data, "images of every class", f"none of {classes[empty[0]]!r} in one half")
        sides.append(EncodedImages(part.store, targets, size, rows=index, flip=data.flip))
    description = f"{data.title}: {len(classes)} classes, {len(sides[0])} training and {len(sides[1])} test images."
    return Task(name, description, classes, fill_prompts(data.templates, classes), sides[0], sides[1])


class _Pool(NamedTuple):
    store: ArrowStore
    labels: IntArray
    names: tuple[str, ...]


def _read(data: HubSet, splits: str) -> _Pool:
    files: list[Path] = []
    for split in splits.split("+"):
        found = _files(data, split)
        try:
            rows = sum(parquet_rows(f, data.image_column, data.label_column) for f in found)
        except SourceError as error:
            raise SourceError(f"{error} {_again(data)}") from error
        expected = dict(data.sizes)[split]
        if rows != expected:
            raise _changed(data, f"{expected:,} rows in split {split!r}", f"{rows:,}")
        files += found
    store, labels, names = read_parquet(files, data.image_column, data.label_column)
    if not names or labels.dtype == object:
        raise _changed(data, f"a ClassLabel column {data.label_column!r}", "labels without names")
    if labels.min() < 0 or labels.max() >= len(names):
        raise _changed(data, f"labels below {len(names)}", f"{labels.min()} to {labels.max()}")
    return _Pool(store, labels, names)


def _rows(data: HubSet, kept: npt.NDArray[np.bool_], train: IntArray, test: IntArray) -> tuple[IntArray, IntArray]:
    """Return the rows to train and to test on, from the labels of both splits and the classes kept."""
    rows = np.flatnonzero(kept[train])
    if data.rule == "80/20":
        order = rows[_permutation(len(rows))]
        cut = int(0.8 * len(order))
        return order[:cut], order[cut:]
    if data.rule == "half":
        groups = [rows[train[rows] == number] for number in np.unique(train[rows])]
        rows = np.concatenate([np.sort(g[_permutation(len(g))[: len(g) // 2]]) for g in groups])
    return rows, np.flatnonzero(kept[test])


def _permutation(length: int) -> IntArray:
    """Return what ``torch.utils.data.random_split`` draws with seed 42, as ZSCL's splits do."""
    import torch

    drawn: IntArray = torch.randperm(length, generator=torch.Generator().manual_seed(SEED)).numpy()
    return drawn


def _reworded(data: HubSet, names: Sequence[str]) -> list[str | None]:
    """Return the words for every class name of the mirror; ``None`` drops the class."""
    lists = _lists()[data.name]
    if "official" in lists:
        return list(_official(data, names, lists["official"]))
    if "names" in lists:
        words = {_plain(name): word for name, word in lists["names"].items()}
        if strange := [name for name in names if _plain(name) not in words]:
            raise _changed(data, f"class names like {next(iter(lists['names']))!r}", repr(strange[0]))
        return [words[_plain(name)] for name in names]
    # '/c/church/outdoor' is a path in SUN397, but 'F/A-18' is an aircraft.
    bare = [" ".join(name.split("/")[2:]) if name.startswith("/") else name for name in names]
    return [name.replace("_", " ").strip() for name in bare]


def _official(data: HubSet, names: Sequence[str], official: Sequence[str]) -> list[str]:
    """Return official names by number ('1' is the first), or by position where most names agree."""
    if all(name.isdecimal() for name in names) and len(set(names)) == len(official):
        first = min(map(int, names))
        numbers = [int(name) - first for name in names]
        if first in (0, 1) and max(numbers) < len(official):
            return [official[number] for number in numbers]
    agree = sum(_plain(a) == _plain(b) for a, b in zip(names, official, strict=False))
    if len(names) != len(official) or agree < 0.9 * len(official):
        raise _changed(data, f"the {len(official)} official class names in order", f"{agree} that agree")
    return list(official)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _files(data: HubSet, split: str) -> list[Path]:
    """Return the Parquet files ``train.parquet``, ``train-00000-of-00002.parquet`` or ``train/*``."""
    named = re.compile(rf"{split}(-\d+-of-\d+)?\.parquet")
    found = [
        file
        for file in sorted(data.folder.rglob("*.parquet"))
        if not any(part.startswith(".") for part in file.relative_to(data.folder).parts)
        and (named.fullmatch(file.name) or file.parent.name == split)
    ]
    places = sorted({str(file.parent) for file in found})
    if len(places) > 1:
        raise _changed(data, f"one folder with split {split!r}", ", ".join(places))
    return found


def _complete(files: Sequence[Path]) -> bool:
    total = re.search(r"-of-(\d+)\.parquet$", files[0].name) if files else None
    return len(files) == int(total[1]) if total else bool(files)


def _known(name: str) -> HubSet:
    if name not in SETS:
        raise NotRegisteredError.among("data set", name, SETS)
    return SETS[name]


def _changed(data: HubSet, expected: str, got: str) -> SourceError:
    return SourceError(f"Expected {expected} in {data.repo}@{data.revision}; got {got}. {_again(data)}")


def _again(data: HubSet) -> str:
    return f"Remove {data.folder} and run `clgym download CLIP-MTIL-v0`."


@cache
def _lists() -> dict[str, dict[str, Any]]:
    text = Path(__file__).with_name("hub.json").read_text("utf-8")
    lists: dict[str, dict[str, Any]] = json.loads(text)
    return lists
