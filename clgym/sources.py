"""Where image domains come from: the embedded pictures, the hub's data sets, or a folder of the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from clgym.errors import SettingError
from clgym.scenario import Task

TRAIN_PER_CLASS, TEST_PER_CLASS = 40, 20
TINY_CLIP, HUB_CLIP = "embedded/tiny-clip", "ViT-B-16/openai"


@dataclass(frozen=True)
class ImageSource:
    """Named image domains and the model they are meant for.

    Attributes:
        name: ``"embedded"``, ``"hub"`` or the folder's name; part of a run's identity.
        backbone: Name of the pre-trained model.
        size: Height and width of an image, pixels.
        domains: Domain names; for embedded and hub in MTIL's order I.
        classes: Number of classes of each domain.
        load: Returns a domain by name.
        require: Raises ``SourceMissingError`` unless the data of these domains are on this machine.
    """

    name: str
    backbone: str
    size: int
    domains: tuple[str, ...]
    classes: tuple[int, ...]
    load: Callable[[str], Task]
    require: Callable[[tuple[str, ...], str], None] = lambda domains, scenario: None


def image_source(source: str, backbone: str = "") -> ImageSource:
    """Return a source by name or path.

    Args:
        source: ``"embedded"``, ``"hub"``, or a folder with one sub-folder per domain.
        backbone: Model for a folder; the other sources have their own.

    Raises:
        SettingError: A backbone is given for a source that has its own.
        SourceError: The folder is malformed; the message names the file.
    """
    if source not in ("embedded", "hub"):
        return _folder(Path(source), backbone or TINY_CLIP)
    if backbone:
        raise SettingError(
            f"Expected no backbone with source {source!r}, which has its own; got {backbone!r}. Leave it out."
        )
    return _embedded() if source == "embedded" else _hub()


def _embedded() -> ImageSource:
    from clgym.worlds.pictures import DOMAINS, domain

    counts = tuple(len(domain(name).classes) for name in DOMAINS)
    return ImageSource("embedded", TINY_CLIP, 32, DOMAINS, counts, embedded_task)


@cache
def embedded_task(name: str) -> Task:
    """Draw a domain of the picture world; drawn once in a process."""
    from clgym.images import ArrayImages
    from clgym.worlds.pictures import domain, draw

    about = domain(name)
    train, test = draw(name, "train", TRAIN_PER_CLASS), draw(name, "test", TEST_PER_CLASS)
    prompts = tuple(tuple(template.format(c) for template in about.templates) for c in about.classes)
    return Task(name, about.description, about.classes, prompts, ArrayImages(*train), ArrayImages(*test))


def _hub() -> ImageSource:
    from clgym.hub import SETS, hub_task, require

    size = image_size(HUB_CLIP)
    counts = tuple(s.classes for s in SETS.values())
    return ImageSource("hub", HUB_CLIP, size, tuple(SETS), counts, partial(hub_task, size=size), require)


def _folder(path: Path, backbone: str) -> ImageSource:
    from clgym.folder import folder_tasks

    size = image_size(backbone)
    tasks = {task.name: task for task in folder_tasks(path, size)}
    counts = tuple(len(task.classes) for task in tasks.values())
    return ImageSource(path.resolve().name, backbone, size, tuple(tasks), counts, tasks.__getitem__)


def image_size(backbone: str) -> int:
    """Return the height and width of a CLIP model's images, from its name alone.

    >>> image_size("embedded/tiny-clip")
    32
    """
    if backbone == TINY_CLIP:
        return 32
    import open_clip

    config = open_clip.get_model_config(backbone.partition("/")[0])
    if config is None:
        raise SettingError(
            f"Expected the backbone {TINY_CLIP!r} or an open_clip model such as {HUB_CLIP!r}; got {backbone!r}. "
            "open_clip.list_pretrained() names them."
        )
    return int(config["vision_cfg"]["image_size"])


def few_shot(task: Task, shots: int, rng: np.random.Generator) -> Task:
    """Return the task with ``shots`` training samples per class, drawn without replacement; all if fewer."""
    from clgym.images import subset

    chosen = [rng.permutation(np.flatnonzero(task.train.targets == c))[:shots] for c in range(len(task.classes))]
    train = subset(task.train, np.concatenate(chosen))
    return Task(task.name, task.description, task.classes, task.prompts, train, task.test)
