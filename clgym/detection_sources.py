"""Where pictures with objects come from: composed scenes, the hub's COCO, or a folder of the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from clgym.agent import EMBEDDED_YOLOS
from clgym.boxed_sets import READINGS, boxed_task, read_pictures
from clgym.boxes import BoxedImages
from clgym.detector import HUB, HUB_SIDE
from clgym.errors import SettingError, SourceError
from clgym.scenario import Task

TRAIN, TEST = 1200, 240  # scenes of the embedded source


@dataclass(frozen=True)
class DetectionSource:
    """One set of pictures with objects, and the detector it is meant for.

    Attributes:
        name: ``"embedded"``, ``"hub"`` or the folder's name; part of a run's identity.
        backbone: Name of the pre-trained detector.
        size: Height and width of an image, pixels.
        classes: Number of classes.
        load: Returns the set as a task.
        require: Raises ``SourceMissingError`` unless the data are on this machine.
    """

    name: str
    backbone: str
    size: int
    classes: int
    load: Callable[[], Task]
    require: Callable[[str], None] = lambda scenario: None


def detection_source(source: str, backbone: str = "", boxes: str = "") -> DetectionSource:
    """Return pictures with objects by the source's name or path.

    Args:
        source: ``"embedded"``, ``"hub"``, or a folder with ``train.parquet`` and ``test.parquet``.
        backbone: Detector for a folder; the other sources have their own.
        boxes: How a folder's or the hub's boxes are read; see :func:`clgym.boxed_sets.read_pictures`.

    Raises:
        SettingError: A backbone or reading is unknown, or given for a source that has its own.
        SourceError: The folder is malformed; the message names the file.
    """
    if boxes not in READINGS or (boxes and source == "embedded"):
        allowed = "''" if source == "embedded" else ", ".join(map(repr, READINGS))
        raise SettingError(f"Expected boxes as one of {allowed} with source {source!r}; got {boxes!r}. Choose one.")
    if source in ("embedded", "hub"):
        if backbone:
            raise SettingError(
                f"Expected no backbone with source {source!r}, which has its own; got {backbone!r}. Leave it out."
            )
        return _embedded() if source == "embedded" else _hub(boxes)
    name = backbone or HUB[0]
    if name not in (EMBEDDED_YOLOS, *HUB):
        known = ", ".join(map(repr, (EMBEDDED_YOLOS, *HUB)))
        raise SettingError(f"Expected the backbone of a folder as one of {known}; got {name!r}. Choose one.")
    return _folder(Path(source), name, boxes)


def _embedded() -> DetectionSource:
    from clgym.worlds.composed import CLASSES, SCENE

    return DetectionSource("embedded", EMBEDDED_YOLOS, SCENE, len(CLASSES), embedded_scenes)


@cache
def embedded_scenes() -> Task:
    """Draw composed scenes as a task; drawn once in a process."""
    from clgym.images import ArrayImages
    from clgym.worlds import composed

    halves = []
    for scenes in (composed.draw("train", TRAIN), composed.draw("test", TEST)):
        there = scenes.boxes[..., 0] >= 0
        images = ArrayImages(scenes.pictures, np.zeros(len(scenes)))
        halves.append(BoxedImages(images, scenes.boxes[there], there.sum(axis=1)))
    about = f"Scenes of one to three objects of {len(composed.CLASSES)} classes of the picture world."
    return Task("scenes", about, composed.CLASSES, tuple((name,) for name in composed.CLASSES), halves[0], halves[1])


def _hub(boxes: str) -> DetectionSource:
    from clgym.hub import require
    from clgym.hub_sets import SETS

    load = partial(hub_pictures, "coco", HUB_SIDE, boxes)
    return DetectionSource("hub", HUB[0], HUB_SIDE, SETS["coco"].classes, load, partial(require, ("coco",)))


def hub_pictures(name: str, size: int, boxes: str = "") -> Task:
    """Return a set of the hub as a task, read from the local files only.

    Raises:
        SourceMissingError: Its files are not on this machine.
        SourceError: Columns, rows or classes are not those that are expected.
    """
    from clgym.hub import hub_files

    data, *halves = hub_files(name)
    read = [read_pictures(files, boxes) for files in halves]
    found = [len(half.store) for half in read]
    expected = [dict(data.sizes)[split] for split in (data.train_split, data.test_split)]
    if found != expected:
        raise SourceError(
            f"Expected {expected[0]:,} and {expected[1]:,} rows in {data.repo}@{data.revision}; got {found[0]:,} and "
            f"{found[1]:,}. Remove {data.folder} and run `clgym download {data.scenario}`."
        )
    return boxed_task(name, data.title, (read[0], read[1]), size, data.classes)


def _folder(path: Path, backbone: str, boxes: str) -> DetectionSource:
    from clgym.worlds.composed import SCENE

    size = SCENE if backbone == EMBEDDED_YOLOS else HUB_SIDE
    halves = []
    for names in (("train",), ("test", "validation", "val")):
        files = [file for name in names for file in sorted(path.glob(f"{name}*.parquet"))]
        if not files:
            raise SourceError(
                f"Expected {names[0]}.parquet in {path}; got none. Give train.parquet and test.parquet, or shards such "
                "as train-00000-of-00002.parquet."
            )
        halves.append(read_pictures(files, boxes))
    task = boxed_task(path.resolve().name, path.resolve().name, (halves[0], halves[1]), size)
    return DetectionSource(path.resolve().name, backbone, size, len(task.classes), lambda: task)
