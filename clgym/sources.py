"""Where image domains and classes come from: the embedded pictures, the hub's data sets, or a folder of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np

from clgym.agent import EMBEDDED_CLIP, EMBEDDED_VIT
from clgym.errors import SettingError
from clgym.labels import distinct
from clgym.scenario import Task

TRAIN_PER_CLASS, TEST_PER_CLASS = 40, 20
TINY_CLIP, HUB_CLIP = EMBEDDED_CLIP, "ViT-B-16/openai"
TINY_VIT, HUB_VIT = EMBEDDED_VIT, "timm/vit_base_patch16_224.augreg_in21k_ft_in1k"
SMALL = {"clip": TINY_CLIP, "vit": TINY_VIT}
REAL = {"clip": HUB_CLIP, "vit": HUB_VIT}
# What a domain appends to a class name that another domain has too, in MTIL's order I.
WORDS = ("aircraft", "object", "small object", "texture", "land", "flower", "dish", "digit", "pet", "car", "scene")
# Hundred classes of the picture world: all but the model names of aircraft and cars, and the digits.
MIXED = ("objects", "small_objects", "textures", "satellite", "flowers", "dishes", "pets", "scenes")
# The picture world's, and the hub's, five domains of ten classes each; "scenes" for EuroSAT.
VTAB = ("satellite", "textures", "pets", "scenes", "flowers")
HUB_VTAB = ("resisc45", "dtd", "oxford_pet", "eurosat", "flowers")
VTAB_CLASSES = 10
STREAMS = ("cifar100", "imagenet_r", "imagenet_a", "imagenet100", "vtab")
_SEED = 1_993  # of the renditions; the pictures below them have a seed of their own


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
        words: What a domain appends to class names that it shares with another; none for a folder.
        require: Raises ``SourceMissingError`` unless the data of these domains are on this machine.
    """

    name: str
    backbone: str
    size: int
    domains: tuple[str, ...]
    classes: tuple[int, ...]
    load: Callable[[str], Task]
    words: Mapping[str, str] = field(default_factory=dict)
    require: Callable[[tuple[str, ...], str], None] = lambda domains, scenario: None


@dataclass(frozen=True)
class ClassSource:
    """Classes to be learned in increments, and the model they are meant for.

    Attributes:
        name: ``"embedded"``, ``"hub"`` or the folder's name; part of a run's identity.
        backbone: Name of the pre-trained model.
        size: Height and width of an image, pixels.
        counts: Number of classes of each task that ``load`` returns.
        load: Returns the tasks.
        given: Whether these tasks stand as they are; otherwise there is one, to be divided.
        free: Whether the protocol's numbers of tasks do not bind: the data are the user's.
        require: Raises ``SourceMissingError`` unless the data are on this machine.
    """

    name: str
    backbone: str
    size: int
    counts: tuple[int, ...]
    load: Callable[[], Sequence[Task]]
    given: bool = False
    free: bool = False
    require: Callable[[str], None] = lambda scenario: None


def image_source(source: str, backbone: str = "") -> ImageSource:
    """Return domains by the source's name or path.

    Args:
        source: ``"embedded"``, ``"hub"``, or a folder with one sub-folder per domain.
        backbone: Model for a folder; the other sources have their own.

    Raises:
        SettingError: A backbone is given for a source that has its own.
        SourceError: The folder is malformed; the message names the file.
    """
    if source not in ("embedded", "hub"):
        return _folder(Path(source), backbone or TINY_CLIP)
    _own_backbone(source, backbone)
    return _embedded() if source == "embedded" else _hub()


def class_source(
    stream: str, source: str, backbone: str, model: Literal["clip", "vit"], template: str = "a photo of a {}."
) -> ClassSource:
    """Return the classes of a class-incremental stream by the source's name or path.

    Args:
        stream: One of :data:`STREAMS`: which classes the embedded and the hub source have.
        source: ``"embedded"``, ``"hub"``, or a folder: with train and test data right in it, to be divided, or
            with one sub-folder per task.
        backbone: Model for a folder; the other sources have their own.
        model: The kind of model.
        template: Prompt of every class of the hub source; the embedded one has "a photo of a {}.", a folder its own.

    Raises:
        SettingError: A backbone is given for a source that has its own.
        SourceError: The folder is malformed; the message names the file.
    """
    if source not in ("embedded", "hub"):
        return _folder_classes(Path(source), backbone or SMALL[model])
    _own_backbone(source, backbone)
    counts = (VTAB_CLASSES,) * len(VTAB) if stream == "vtab" else (100,)
    if source == "embedded":
        return ClassSource(source, SMALL[model], 32, counts, partial(embedded_classes, stream), stream == "vtab")
    from clgym.hub import require
    from clgym.hub_sets import SETS

    size, names = image_size(REAL[model]), HUB_VTAB if stream == "vtab" else (stream,)
    counts = counts if stream == "vtab" else (SETS[stream].classes,)
    load = partial(_hub_classes, names, size, model == "vit", template)
    return ClassSource(source, REAL[model], size, counts, load, stream == "vtab", require=partial(require, names))


def _own_backbone(source: str, backbone: str) -> None:
    if backbone:
        raise SettingError(
            f"Expected no backbone with source {source!r}, which has its own; got {backbone!r}. Leave it out."
        )


def _embedded() -> ImageSource:
    from clgym.worlds.pictures import DOMAINS, domain

    counts = tuple(len(domain(name).classes) for name in DOMAINS)
    words = dict(zip(DOMAINS, WORDS, strict=True))
    return ImageSource("embedded", TINY_CLIP, 32, DOMAINS, counts, embedded_task, words)


@cache
def embedded_task(name: str) -> Task:
    """Draw a domain of the picture world; drawn once in a process."""
    from clgym.images import ArrayImages
    from clgym.worlds.pictures import domain, draw

    about = domain(name)
    train, test = draw(name, "train", TRAIN_PER_CLASS), draw(name, "test", TEST_PER_CLASS)
    prompts = tuple(tuple(template.format(c) for template in about.templates) for c in about.classes)
    return Task(name, about.description, about.classes, prompts, ArrayImages(*train), ArrayImages(*test))


@cache
def embedded_classes(stream: str) -> tuple[Task, ...]:
    """Draw the classes of a stream in the picture world; drawn once in a process.

    ``"cifar100"`` has the hundred classes of :data:`MIXED`; ``"imagenet_r"`` has them in renditions, each picture in
    a style of its own; ``"imagenet_a"`` hard to see. ``"imagenet100"`` has the world's first hundred classes, and
    ``"vtab"`` five domains of ten. Names that two domains share get the domain's word.
    """
    from clgym.images import ArrayImages, fill_prompts
    from clgym.worlds.pictures import DOMAINS
    from clgym.worlds.styles import STYLES, hardened, rendered

    words = dict(zip(DOMAINS, WORDS, strict=True))
    names = {"vtab": VTAB, "imagenet100": DOMAINS}.get(stream, MIXED)
    tasks = [first_classes(task, VTAB_CLASSES) if stream == "vtab" else task for task in map(embedded_task, names)]
    tasks = distinct(tasks, words)
    if stream == "vtab":
        return tuple(replace(task, prompts=fill_prompts(["a photo of a {}."], task.classes)) for task in tasks)
    classes = tuple(name for task in tasks for name in task.classes)[:100]
    halves = []
    for number, per_class in enumerate((TRAIN_PER_CLASS, TEST_PER_CLASS)):
        data = [(task.train, task.test)[number] for task in tasks]
        pictures = np.concatenate([np.asarray(part.batch(np.arange(len(part)))) for part in data])
        pictures = pictures[: len(classes) * per_class]
        rng = np.random.default_rng((_SEED, STREAMS.index(stream), number))
        if stream == "imagenet_r":
            pictures = rendered(pictures, rng.integers(1, len(STYLES), len(pictures)))
        if stream == "imagenet_a":
            pictures = hardened(pictures, rng)
        halves.append(ArrayImages(pictures, np.repeat(np.arange(len(classes)), per_class)))
    about = f"{len(classes)} classes of the picture world"
    return (Task(stream, about, classes, fill_prompts(["a photo of a {}."], classes), halves[0], halves[1]),)


def first_classes(task: Task, count: int) -> Task:
    """Return a task with its first so many classes only."""
    from clgym.parts import picked

    halves = []
    for data in (task.train, task.test):
        rows = np.flatnonzero(data.targets < count)
        halves.append(picked(data, rows, data.targets[rows]))
    kept = {"classes": task.classes[:count], "prompts": task.prompts[:count]}
    return replace(task, **kept, train=halves[0], test=halves[1])  # type: ignore[arg-type]


def _hub() -> ImageSource:
    from clgym.hub import hub_task, require
    from clgym.hub_sets import MTIL, SETS

    size = image_size(HUB_CLIP)
    counts = tuple(SETS[name].classes for name in MTIL)
    words = dict(zip(MTIL, WORDS, strict=True))
    return ImageSource("hub", HUB_CLIP, size, MTIL, counts, partial(hub_task, size=size), words, require)


def _hub_classes(names: Sequence[str], size: int, pilot: bool, template: str) -> list[Task]:
    """Read sets of the hub; several sets give their first classes each."""
    from clgym.hub import hub_task
    from clgym.images import CLIP_VIEW, PILOT_VIEW, fill_prompts

    tasks = [hub_task(name, size, PILOT_VIEW if pilot else CLIP_VIEW) for name in names]
    if len(tasks) > 1:
        tasks = [first_classes(task, VTAB_CLASSES) for task in tasks]
    return [replace(task, prompts=fill_prompts([template], task.classes)) for task in tasks]


def _folder(path: Path, backbone: str) -> ImageSource:
    from clgym.folder import folder_tasks

    size = image_size(backbone)
    tasks = {task.name: task for task in folder_tasks(path, size)}
    counts = tuple(len(task.classes) for task in tasks.values())
    return ImageSource(path.resolve().name, backbone, size, tuple(tasks), counts, tasks.__getitem__)


def _folder_classes(path: Path, backbone: str) -> ClassSource:
    from clgym.folder import folder_tasks, is_single, single_task

    size = image_size(backbone)
    alone = is_single(path)
    tasks = [single_task(path, size)] if alone else folder_tasks(path, size)
    counts = tuple(len(task.classes) for task in tasks)
    return ClassSource(path.resolve().name, backbone, size, counts, lambda: tasks, not alone, free=True)


def image_size(backbone: str) -> int:
    """Return the height and width of a model's images, from its name alone.

    >>> image_size("embedded/tiny-clip"), image_size("timm/vit_base_patch16_224.augreg_in21k_ft_in1k")
    (32, 224)
    """
    if backbone in SMALL.values():
        return 32
    family, _, tag = backbone.partition("/")
    if family == "timm":
        import timm

        found = timm.get_pretrained_cfg(tag)
        if found is not None:
            return int(found.input_size[-1])
    else:
        import open_clip

        config = open_clip.get_model_config(family)
        if config is not None:
            return int(config["vision_cfg"]["image_size"])
    raise SettingError(
        f"Expected the backbone {TINY_CLIP!r} or {TINY_VIT!r}, an open_clip model such as {HUB_CLIP!r} or a timm model "
        f"such as {HUB_VIT!r}; got {backbone!r}. open_clip.list_pretrained() and timm.list_pretrained() name them."
    )


def few_shot(task: Task, shots: int, rng: np.random.Generator) -> Task:
    """Return the task with ``shots`` training samples per class, drawn without replacement; all if fewer."""
    from clgym.images import subset

    chosen = [rng.permutation(np.flatnonzero(task.train.targets == c))[:shots] for c in range(len(task.classes))]
    train = subset(task.train, np.concatenate(chosen))
    return Task(task.name, task.description, task.classes, task.prompts, train, task.test)
