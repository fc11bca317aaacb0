"""Cross-domain task-agnostic incremental learning of CLIP: every question offers the classes of all domains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from clgym.errors import SettingError, SourceError
from clgym.scenario import Scenario, ScenarioSpec, Task, Teaching
from clgym.sources import TINY_CLIP, few_shot, image_source

LEFT_OUT = 2  # position of CIFAR-100, and of the domain that stands for it, in MTIL's order I
WORDS = ("aircraft", "object", "texture", "land", "flower", "dish", "digit", "pet", "car", "scene")


class ClipXTAIL(Scenario):
    """Ten image domains learned one after another; every question is among the classes of all ten, seen or not.

    The domains are those of MTIL without CIFAR-100, in alphabetical order, with 16 training images per class
    (RAIL, arXiv:2406.18868). Neither training nor questions say which task they belong to, and a
    question's candidates are the union of all classes, 1,100 in the paper. So a method must tell domains
    apart, seen and unseen. Row 0 of ``R`` is zero-shot; Transfer, Avg and Last are MTIL's.

    Class names must differ between domains. Where two domains of the embedded or the hub source share a name
    (a "ginger cat" is an aircraft and a car, a "sunflower" an object and a flower), each of them appends its
    word of :data:`WORDS`, to the name and in the prompts: "ginger cat car". In a folder, names are the user's.

    Observation: uint8 images ``(B, H, W, 3)``; H = W = 32 (embedded) or the backbone's size (hub, folder).

    Departs from the paper: the few-shot lists of CoOp and its test splits are not on the hub, so shots are
    drawn from MTIL's training halves with the run's seed, and MTIL's test halves are asked (Caltech101 keeps
    its 101 classes). A class with fewer images gives all of them once; the paper draws with replacement.
    Every class is asked with the templates of its own set, as CoDyRA does; RAIL has one template for all,
    so zero-shot numbers differ from its.

    Version history:
        v0: First.

    Args:
        source: ``"embedded"``: the picture world and a tiny CLIP; ``"hub"``: the ten data sets and ViT-B/16 of
            the paper; or a folder with one sub-folder per domain (see :mod:`clgym.folder`), all of them used.
        shots: Training samples per class; 0 takes all.
        tasks: Play the first so many domains only, with the union of their classes; 0 plays all.
        steps: ``Train`` events per domain; 0 takes the source's constant, 500 or, on the tiny CLIP, 100.
        backbone: Pre-trained model for a folder, ``"embedded/tiny-clip"`` or an open_clip name such as
            ``"ViT-B-16/openai"``; the other sources have their own.
        probe_every: Ask about the domains seen so far every so many ``Train`` events; 0 is never.
        prequential: Ask about every training batch before it is shown.

    Raises:
        SettingError: A setting is out of range.
        SourceError: The folder is malformed, or its domains share class names.
        SourceMissingError: The hub's data are not on this machine.
    """

    spec = ScenarioSpec(
        id="CLIP-XTAIL-v0",
        title="Cross-domain task-agnostic incremental learning with CLIP",
        paper="arXiv:2406.18868",
        kind="class-incremental",
        modality="image",
        description=(
            "Ten image domains (aircraft, objects, textures, satellite, flowers, food, digits, pets, cars, scenes) "
            "are learned one after another from 16 images per class. Every question offers the classes of all ten "
            "domains, learned or not, and does not say its own, so domains must be told apart as well as classes."
        ),
        metrics=(
            "mtil_transfer",
            "mtil_avg",
            "mtil_last",
            "average_accuracy",
            "backward_transfer",
            "forward_transfer",
            "forgetting",
            "learning_accuracy",
        ),
        licences=(
            ("embedded pictures", "Apache-2.0, drawn by the package"),
            ("embedded digits", "CC BY 4.0, UCI Optical Recognition of Handwritten Digits, via scikit-learn"),
            ("hub", "each data set's own; see clgym.hub"),
        ),
    )

    def __init__(
        self,
        *,
        source: str = "embedded",
        shots: int = 16,
        tasks: int = 0,
        steps: int = 0,
        backbone: str = "",
        probe_every: int = 0,
        prequential: bool = False,
    ) -> None:
        """Check the settings; a folder is read here, so that its faults show at once."""
        for name, value in {"shots": shots, "tasks": tasks, "steps": steps, "probe_every": probe_every}.items():
            if value < 0:
                raise SettingError(f"Expected {name} to be 0 or more; got {value}. 0 takes the default.")
        self._domains = image_source(source, backbone)
        counts = dict(zip(self._domains.domains, self._domains.classes, strict=True))
        names = self._domains.domains
        self._words: dict[str, str] = {}
        if source in ("embedded", "hub"):
            names = names[:LEFT_OUT] + names[LEFT_OUT + 1 :]
            self._words = dict(zip(names, WORDS, strict=True))
        self._names = names[: tasks or None]
        self._domains.require(self._names, self.spec.id)
        if not self._words:
            distinct([self._domains.load(name) for name in self._names], {})
        self._shots = shots
        self.source, self.backbone = self._domains.name, self._domains.backbone
        self.shape = (self._domains.size, self._domains.size, 3)
        self.classes = sum(counts[name] for name in self._names)
        real = self.backbone != TINY_CLIP
        self.teaching = Teaching(
            batch_size=64 if real else 32,
            steps=steps or (500 if real else 100),
            task_given=False,
            labels="union",
            probe_every=probe_every,
            prequential=prequential,
        )

    def tasks(self, rng: np.random.Generator) -> Sequence[Task]:
        """Return the domains in order, with distinct class names; ``rng`` draws the few-shot samples."""
        loaded = distinct([self._domains.load(name) for name in self._names], self._words)
        return [few_shot(task, self._shots, rng) for task in loaded] if self._shots else loaded


def distinct(tasks: Sequence[Task], words: Mapping[str, str]) -> list[Task]:
    """Return the tasks with class names that differ between them, capitals aside.

    Args:
        tasks: The domains.
        words: For a domain, by name, what it appends to the class names that it shares with another.

    Raises:
        SourceError: Names are shared, and a domain that has one has no word.
    """
    shared = _shared(tasks)
    renamed = [_appended(task, words[task.name], frozenset(shared)) if task.name in words else task for task in tasks]
    if left := _shared(renamed):
        some = "; ".join(f"{name!r} in {' and '.join(of)}" for name, of in list(left.items())[:5])
        raise SourceError(
            f"Expected class names that differ between domains; got {len(left)} shared: {some}. "
            "Rename the class in all but one domain, such as 'crane bird' for 'crane'."
        )
    return renamed


def _shared(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Return the class names in lower case that several tasks have, with the tasks' names."""
    owners: dict[str, list[str]] = defaultdict(list)
    for task in tasks:
        for name in task.classes:
            owners[name.casefold()].append(task.name)
    return {name: of for name, of in owners.items() if len(of) > 1}


def _appended(task: Task, word: str, shared: frozenset[str]) -> Task:
    """Return the task with a word after each shared class name, in the prompts too unless it stands there already."""
    classes, prompts = [], []
    for name, texts in zip(task.classes, task.prompts, strict=True):
        new = f"{name} {word}" if name.casefold() in shared else name
        classes.append(new)
        prompts.append(tuple(text if new in text else text.replace(name, new, 1) for text in texts))
    return replace(task, classes=tuple(classes), prompts=tuple(prompts))
