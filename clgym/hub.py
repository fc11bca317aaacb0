"""Image data sets from the Hugging Face hub, at the revisions of :mod:`clgym.hub_sets`.

Nothing here touches the network except :func:`download`, which runs only when the user asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from clgym.errors import NotRegisteredError, SourceError, SourceMissingError
from clgym.events import IntArray
from clgym.folder import parquet_rows, read_parquet
from clgym.hub_sets import SETS, HubSet, class_lists
from clgym.images import CLIP_VIEW, ArrowStore, EncodedImages, View, data_directory, fill_prompts
from clgym.scenario import Task

SEED = 42
_ACCEPT = "Accept the terms on its page on the hub and log in with `hf auth login`. "


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
                allow_patterns=list(data.files),
            )
        # The client's errors have no common base: its own, httpx's, OSError.
        except Exception as error:
            raise SourceMissingError(
                f"Expected to fetch {data.repo}@{data.revision}; got {type(error).__name__}: {error}. "
                f"{_ACCEPT if data.gated else ''}Check the network (and HF_HUB_OFFLINE) and run the command again: "
                "it resumes."
            ) from error
        if missing([data.name]):
            found = ", ".join(str(f.relative_to(data.folder)) for f in data.folder.rglob("*.parquet"))
            raise _changed(data, f"the splits {', '.join(dict(data.sizes))}", found or "no Parquet file")


def hub_tasks(names: Sequence[str], size: int, scenario: str = "CLIP-MTIL-v0") -> list[Task]:
    """Return the tasks in the order of ``names``; see :func:`hub_task`."""
    require(names, scenario)
    return [hub_task(name, size) for name in names]


def hub_task(name: str, size: int, view: View = CLIP_VIEW) -> Task:
    """Return one data set as a task, read from the local files only.

    Args:
        name: Key in :data:`clgym.hub_sets.SETS`.
        size: Side of the images that the task gives, in pixels.
        view: How files become images.

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
        sides.append(EncodedImages(part.store, targets, size, rows=index, view=view))
    description = f"{data.title}: {len(classes)} classes, {len(sides[0])} training and {len(sides[1])} test images."
    return Task(name, description, classes, fill_prompts(data.templates, classes), sides[0], sides[1])


def hub_files(name: str) -> tuple[HubSet, list[Path], list[Path]]:
    """Return a set and its Parquet files to train and to test on.

    Raises:
        NotRegisteredError: No such set.
        SourceMissingError: Its files are not on this machine.
    """
    data = _known(name)
    require([name], data.scenario)
    return data, _files(data, data.train_split), _files(data, data.test_split)


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
    store, labels, names = read_parquet(files, data.image_column, data.label_column, below=data.first)
    if data.text and labels.dtype == object:
        names = tuple(sorted(set(labels)))
        labels = np.searchsorted(np.array(names, dtype=object), labels).astype(np.int64)
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
    if data.rule == "stratified":
        groups = [rows[train[rows] == number] for number in np.unique(train[rows])]
        drawn = [g[_permutation(len(g))] for g in groups]
        cuts = [4 * len(g) // 5 for g in groups]
        sides = (
            [g[:cut] for g, cut in zip(drawn, cuts, strict=True)],
            [g[cut:] for g, cut in zip(drawn, cuts, strict=True)],
        )
        return np.sort(np.concatenate(sides[0])), np.sort(np.concatenate(sides[1]))
    return rows, np.flatnonzero(kept[test])


def _permutation(length: int) -> IntArray:
    """Return what ``torch.utils.data.random_split`` draws with seed 42, as ZSCL's splits do."""
    import torch

    drawn: IntArray = torch.randperm(length, generator=torch.Generator().manual_seed(SEED)).numpy()
    return drawn


def _reworded(data: HubSet, names: Sequence[str]) -> list[str | None]:
    """Return the words for every class name of the mirror; ``None`` drops the class."""
    lists = class_lists()[data.name]
    if data.first:
        return [*_listed(data, names, lists["first"]), *[None] * (len(names) - data.first)]
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


def _listed(data: HubSet, names: Sequence[str], listed: Sequence[Sequence[str]]) -> list[str]:
    """Return the words of the first classes, once most of their names are those of the list."""
    agree = sum(_plain(a.partition(",")[0]) == _plain(b) for a, (b, _) in zip(names, listed, strict=False))
    if len(names) < data.first or agree < 0.9 * len(listed):
        raise _changed(data, f"the {len(listed)} classes of the list first", f"{agree} that agree")
    return [word for _, word in listed]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _files(data: HubSet, split: str) -> list[Path]:
    """Return the Parquet files ``train.parquet``, ``train-00000-of-00002.parquet`` or ``train/*``."""
    named = re.compile(rf"{split}(-\d+-of-\d+(-[0-9a-f]+)?)?\.parquet")
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
    total = re.search(r"-of-(\d+)(-[0-9a-f]+)?\.parquet$", files[0].name) if files else None
    return len(files) == int(total[1]) if total else bool(files)


def _known(name: str) -> HubSet:
    if name not in SETS:
        raise NotRegisteredError.among("data set", name, SETS)
    return SETS[name]


def _changed(data: HubSet, expected: str, got: str) -> SourceError:
    return SourceError(f"Expected {expected} in {data.repo}@{data.revision}; got {got}. {_again(data)}")


def _again(data: HubSet) -> str:
    return f"Remove {data.folder} and run `clgym download {data.scenario}`."
