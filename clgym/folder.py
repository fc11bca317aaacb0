"""Tasks from the user's own folder: Parquet files or image folders, one sub-folder per task."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clgym.errors import SourceError
from clgym.images import ArrowStore, EncodedImages, FileStore, Store, View, data_directory, fill_prompts
from clgym.scenario import Task

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
CHECKED = 20_000


class _Split(NamedTuple):
    """One split as it lies on disk: its place, its images, the class name of every image, the classes."""

    place: str
    store: Store
    names: npt.NDArray[np.object_]
    order: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Card:
    """What ``task.json`` may say."""

    title: str
    description: str
    templates: tuple[str, ...]
    flip: bool


def folder_tasks(path: str | Path, size: int, *, flip: bool = True, template: str = "a photo of a {}.") -> list[Task]:
    """Return one task per sub-folder of ``path``, sorted by name.

    A sub-folder holds ``train.parquet`` and ``test.parquet`` (or shards ``train-*.parquet``; a missing test
    may be called ``validation``) with the columns ``image`` and ``label``, the labels class names or integers
    with names in the schema; or images as ``train/<class>/*.png`` and ``test/<class>/*.png``. Underscores in
    class names become spaces; classes without a single image are left out. An optional ``task.json`` may set
    ``title``, ``description``, ``template`` or ``templates``, and ``flip``.

    Columns and labels are checked at once, and the header of every image (of 20,000 evenly spaced ones in a
    larger split). A broken image body is reported when it is first decoded.

    Args:
        path: The folder.
        size: Side of the images that the tasks give, in pixels.
        flip: Whether the training view may mirror, where ``task.json`` does not say.
        template: Prompt, where ``task.json`` does not say.

    Raises:
        SourceError: The folder is malformed; the message names the file and the fix.
    """
    root = Path(path)
    folders = _folders(root)
    if is_single(root):
        raise SourceError(f"Expected one sub-folder per task in {root}; got a single task. Move it one level down.")
    if not folders:
        raise SourceError(f"Expected one sub-folder per task in {root}; got an empty folder. {_LAYOUT}")
    _check_template(template, "the setting template")
    return [_task(folder, size, _card(folder, flip, template)) for folder in folders]


def is_single(path: str | Path) -> bool:
    """Whether a folder is itself a task, with train and test data right in it.

    Raises:
        SourceError: There is no folder.
    """
    root = Path(path)
    names = [folder.name for folder in _folders(root)]
    return any(_files(root, s) for s in ("train", "test")) or names in (["test", "train"], ["train", "validation"])


def single_task(path: str | Path, size: int, *, flip: bool = True, template: str = "a photo of a {}.") -> Task:
    """Return a folder that is itself a task; the arguments and errors are those of :func:`folder_tasks`."""
    _check_template(template, "the setting template")
    return _task(Path(path), size, _card(Path(path), flip, template))


def _folders(root: Path) -> list[Path]:
    """Return the sub-folders that count, sorted by name."""
    if not root.is_dir():
        raise SourceError(f"Expected a folder at {root}; got {'a file' if root.exists() else 'nothing'}. {_LAYOUT}")
    return sorted(f for f in root.iterdir() if f.is_dir() and f.name[0] not in "._")


_LAYOUT = (
    "Give one sub-folder per task, each with train.parquet and test.parquet (columns image, label), "
    "or with train/<class>/*.png and test/<class>/*.png."
)


def _task(folder: Path, size: int, card: _Card) -> Task:
    train = _split(folder, ("train",))
    test = _split(folder, ("test", "validation"))
    taught = set(train.names)
    present = [name for name in train.order if name in taught]
    unseen = ", ".join(sorted(repr(name) for name in set(test.names) - taught))
    if unseen:
        raise SourceError(
            f"Expected the classes of {test.place} in {train.place}; got {unseen} only in the test "
            "data. Add training images of the class, or remove its test images."
        )
    if len(present) < 2:
        raise SourceError(
            f"Expected at least two classes in {train.place}; got only {present[0]!r}. "
            "Add images of another class, or remove the folder."
        )
    classes = _reworded(present, train.place)
    numbers = {name: number for number, name in enumerate(present)}
    data = []
    for split in (train, test):
        images = EncodedImages(split.store, [numbers[n] for n in split.names], size, view=View(flip=card.flip))
        images.check(CHECKED)
        data.append(images)
    described = card.description or (
        f"{card.title}: {len(classes)} classes, {len(data[0])} training and {len(data[1])} test images."
    )
    return Task(folder.name, described, classes, fill_prompts(card.templates, classes), data[0], data[1])


def _reworded(names: Sequence[str], place: str) -> tuple[str, ...]:
    reworded: dict[str, str] = {}
    for name in names:
        words = " ".join(name.replace("_", " ").split())
        if words in reworded:
            raise SourceError(
                f"Expected class names in {place} that differ once underscores are spaces; got "
                f"{reworded[words]!r} and {name!r}. Rename one of them."
            )
        reworded[words] = name
    return tuple(reworded)


def _split(folder: Path, splits: Sequence[str]) -> _Split:
    for split in splits:
        if files := _files(folder, split):
            return _parquet_split(files)
        if (folder / split).is_dir():
            return _image_split(folder / split)
    found = ", ".join(sorted(f.name for f in folder.iterdir())) or "an empty folder"
    raise SourceError(
        f"Expected {splits[0]}.parquet or {splits[0]}/<class>/ in {folder}; got {found}. "
        f"Add the {splits[0]} data, or remove the folder."
    )


def _files(folder: Path, split: str) -> list[Path]:
    return sorted([*folder.glob(f"{split}.parquet"), *folder.glob(f"{split}-*.parquet")])


def _parquet_split(files: Sequence[Path]) -> _Split:
    store, labels, classes = read_parquet(files, "image", "label")
    place = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    if labels.dtype == object:
        return _Split(place, store, labels, sorted(set(labels)))
    if not classes:
        raise SourceError(
            f"Expected class names for the integers in column 'label' of {place}; got none in the schema. "
            "Write the column as datasets.ClassLabel(names=...), or as class names."
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        row = int(np.flatnonzero((labels < 0) | (labels >= len(classes)))[0])
        raise SourceError(
            f"Expected labels from 0 to {len(classes) - 1}; got {labels[row]} at {store.where(row)}. "
            "Remove the row, or add the class name to the schema."
        )
    return _Split(place, store, np.array(classes, dtype=object)[labels], classes)


def _image_split(folder: Path) -> _Split:
    paths: list[Path] = []
    names: list[str] = []
    for kind in sorted(f for f in folder.iterdir() if f.is_dir() and f.name[0] not in "._"):
        files = sorted(f for f in kind.iterdir() if f.suffix.lower() in SUFFIXES and f.name[0] != ".")
        if not files:
            raise SourceError(
                f"Expected images in {kind}; got no file ending in {', '.join(SUFFIXES)}. "
                "Add images, or remove the folder."
            )
        paths += files
        names += [kind.name] * len(files)
    if not paths:
        raise SourceError(f"Expected one sub-folder per class in {folder}; got none. {_LAYOUT}")
    return _Split(str(folder), FileStore(tuple(paths)), np.array(names, dtype=object), sorted(set(names)))


def _card(folder: Path, flip: bool, template: str) -> _Card:
    file = folder / "task.json"
    try:
        said = json.loads(file.read_text("utf-8")) if file.exists() else {}
    except ValueError as error:
        raise SourceError(f"Expected JSON in {file}; got {error}. Correct or remove the file.") from error
    known = {"title": str, "description": str, "template": str, "templates": list, "flip": bool}
    for key, value in said.items() if isinstance(said, dict) else [("a list or a value", said)]:
        if not isinstance(value, known.get(key, ())):
            raise SourceError(
                f"Expected in {file} an object with title, description, template (text), templates (a list "
                f"of text) and flip (true or false); got {key}: {value!r}. Correct or remove the entry."
            )
    templates = said.get("templates") or [said.get("template", template)]
    for each in templates:
        _check_template(each, str(file))
    title = said.get("title", folder.name.replace("_", " "))
    return _Card(title, said.get("description", ""), tuple(templates), said.get("flip", flip))


def _check_template(template: object, place: str) -> None:
    if not isinstance(template, str) or "{}" not in template:
        raise SourceError(
            f"Expected a prompt template with {{}} for the class name in {place}; got {template!r}. "
            "Write it like 'a photo of a {}.'."
        )


def read_parquet(
    files: Sequence[Path], image: str, label: str, *, below: int = 0
) -> tuple[ArrowStore, npt.NDArray[Any], tuple[str, ...]]:
    """Convert Parquet files once to memory-mapped Arrow and return images, labels and class names.

    The Arrow copy lies in ``data_directory()/arrow`` and is reused until a file changes.

    Args:
        files: The files, in row order.
        image: Column of the encoded images.
        label: Column of the labels.
        below: Copy only rows whose integer label is below this; 0 copies all.

    Returns:
        The images; the labels, int64 or strings ``(N,)``; the class names of the schema, or none.

    Raises:
        SourceError: A file is unreadable, lacks a column, or a column has the wrong type.
    """
    import datasets
    import pyarrow as pa

    found = [(file, parquet_rows(file, image, label)) for file in files]
    chosen = [(label, "<", below)] if below else None
    counts = [(file, _count(file, label, below) if below else rows) for file, rows in found]
    counts = [(file, rows) for file, rows in counts if rows]
    if not counts:
        raise SourceError(f"Expected images in {files[0]}; got no rows. Add some, or remove the file.")
    cache = data_directory() / "arrow"
    try:
        with no_progress_bars():
            table = datasets.Dataset.from_parquet(
                [str(f) for f, _ in counts], cache_dir=str(cache), columns=[image, label], filters=chosen
            )
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        names = ", ".join(map(str, files))
        cause = error.__cause__ or error
        raise SourceError(
            f"Expected to convert {names} to Arrow in {cache}; got {type(cause).__name__}: {cause}. "
            "Export the files again, or let CLGYM_DATA name a writable directory with enough space."
        ) from error
    feature = table.features[label]
    classes = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
    column = table.data.column(label)
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        where = ArrowStore(table.data.column(image), counts).where(row)
        raise SourceError(f"Expected a label in every row; got none at {where}. Remove the row or label it.")
    labels = column.to_numpy()
    labels = labels if labels.dtype == object else labels.astype(np.int64)
    return ArrowStore(table.data.column(image), counts), labels, classes


def _count(file: Path, label: str, below: int) -> int:
    """Return how many rows of a Parquet file have a label below a number, reading that column only."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    return int(pc.sum(pc.less(pq.read_table(file, columns=[label])[label], below)).as_py() or 0)


def parquet_rows(file: Path, image: str, label: str) -> int:
    """Return the number of rows after checking the columns, reading only the footer.

    Raises:
        SourceError: The file is no Parquet, lacks a column, or a column has the wrong type.
    """
    import pyarrow as pa

    footer = _footer(file)
    schema = footer.schema.to_arrow_schema()
    if image not in schema.names or label not in schema.names:
        raise SourceError(
            f"Expected the columns {image!r} and {label!r} in {file}; got "
            f"{', '.join(map(repr, schema.names))}. Rename the columns, or remove the file."
        )
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise SourceError(
            f"Expected encoded images (binary, or a struct with 'bytes') in column {image!r} of {file}; got "
            f"{kind}. Write the column as datasets.Image(), with the bytes embedded."
        )
    kind = schema.field(label).type
    if not any(f(kind) for f in (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)):
        raise SourceError(
            f"Expected integers or strings in column {label!r} of {file}; got {kind}. "
            "Write the column as datasets.ClassLabel(names=...), or as class names."
        )
    return int(footer.num_rows)


def parquet_footer(file: Path, columns: Sequence[str], fix: str) -> int:
    """Return the number of rows after checking that the columns are there, reading only the footer.

    Raises:
        SourceError: The file is no Parquet, or lacks a column; the message ends with ``fix``.
    """
    footer = _footer(file)
    names = footer.schema.to_arrow_schema().names
    if missing := [name for name in columns if name not in names]:
        raise SourceError(f"Expected the column {missing[0]!r} in {file}; got {', '.join(map(repr, names))}. {fix}.")
    return int(footer.num_rows)


def _footer(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"Expected a Parquet file at {file}; got {error}. Export it again.") from error


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep ``datasets`` from drawing progress bars within the block."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
