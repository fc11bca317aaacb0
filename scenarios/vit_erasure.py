"""Continual removal of classes from a classifier, the protocol of GS-LoRA: learn a hundred, then lose twenty at a time.

Goal ``"removal"``: the classes must no longer be known, whatever the pre-trained model knew; the target is chance, and
there is no counterfactual stream. After each request all classes are asked about. Acc_r, Acc_f, Acc_o, Acc_m and H-mean
(``clgym erasure``) are those of the paper.

Departs from the paper (arXiv:2501.09705): its classifiers are trained before and handed over, with a head of CosFace on
faces and torchvision's of a thousand classes on ImageNet. Here the stream begins with a task that teaches all classes,
so that every agent has the same data and steps for it, and the agent as it stands then is the pre-trained model.
Samples are granted per class, not as a share of all; the default number is about the paper's share. Steps are counted,
not epochs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from clgym.demands import of_classes
from clgym.errors import SettingError
from clgym.scenario import Request, Scenario, ScenarioSpec, Task, Teaching
from clgym.sources import ClassSource, class_source
from clgym.variants import not_negative

SEED = 1337  # of the paper's order of classes


def removal_order(count: int = 100) -> list[int]:
    """Return the paper's order of classes: Python's shuffle of ``range(count)`` with seed 1337.

    The last twenty go first.

    >>> removal_order()[80:84], removal_order()[:4]
    ([51, 54, 13, 88], [83, 17, 10, 9])
    """
    order = list(range(count))
    random.Random(SEED).shuffle(order)
    return order


class Removal(Scenario):
    """Base of the two streams; a subclass calls :meth:`set_up` in its ``__init__``."""

    def set_up(
        self,
        source: ClassSource,
        *,
        amount: int,
        requests: int,
        forget: str,
        retain: str,
        shots: int,
        usual_shots: int,
        missing: int,
        erase_steps: int,
        steps: int,
    ) -> None:
        """Set what a scenario sets.

        Args:
            source: Where the classes come from.
            amount: Classes of each request.
            requests: Number of requests.
            forget: What of the erased classes may be read.
            retain: What of the others may be read.
            shots: Samples per class of ``"few"``; 0 takes ``usual_shots``, or a quarter on the embedded model.
            usual_shots: The paper's share of a class's training samples.
            missing: Number of classes that remain to the end of which nothing may be read.
            erase_steps: ``Erase`` events per request; 0 is 1,000, or 60 on the embedded model.
            steps: ``Train`` events of the first task; 0 is 1,000, or 400 on the embedded model.

        Raises:
            SettingError: A setting is out of range, or the source's classes do not stand in one set.
            SourceMissingError: The data are not on this machine.
        """
        not_negative(shots=shots, missing=missing, erase_steps=erase_steps, steps=steps)
        _check(source, amount * requests if min(amount, requests) > 0 else 0, missing, forget, retain)
        (count,) = source.counts
        source.require(self.spec.id)
        self._data, self._order = source, removal_order(count)
        self._amount, self._requests, self._missing = amount, requests, missing
        self.source, self.backbone, self.shape = source.name, source.backbone, (source.size, source.size, 3)
        self.classes = count
        small = source.backbone.startswith("embedded/")
        few = shots or (10 if small else usual_shots)
        self._how: dict[str, Any] = {"forget": forget, "retain": retain, "goal": "removal"}
        self._how |= {
            "shots": few if "few" in (forget, retain) else 0,
            "steps": erase_steps or (60 if small else 1000),
        }
        self.teaching = Teaching(
            batch_size=32 if small else 48,
            steps=steps or (400 if small else 1000),
            labels="union",
            needs_scores=True,
        )

    def tasks(self, rng: np.random.Generator) -> Sequence[Task]:
        """Return the one task that teaches all classes."""
        del rng
        return list(self._data.load())

    def requests(self, tasks: Sequence[Task], rng: np.random.Generator) -> Sequence[Request]:
        """Return the requests, each for the last classes of the order that are left."""
        del rng
        names = [tasks[0].classes[c] for c in self._order]
        out = []
        for i in range(self._requests):
            gone = names[len(names) - self._amount * (i + 1) : len(names) - self._amount * i]
            out.append(of_classes(tasks, gone, after=1, missing=tuple(names[: self._missing]), **self._how))
        return out


def _check(source: ClassSource, gone: int, missing: int, forget: str, retain: str) -> None:
    """Raise unless the choices are known, and classes in one set are left when ``gone`` of them are."""
    for name, value, known in (
        ("forget", forget, ("none", "few", "full")),
        ("retain", retain, ("none", "few", "own", "full")),
    ):
        if value not in known:
            raise SettingError(f"Expected {name} as one of {', '.join(map(repr, known))}; got {value!r}. Choose one.")
    if len(source.counts) > 1:
        raise SettingError(
            f"Expected classes in one set; got the {len(source.counts)} tasks of {source.name}. Move them together."
        )
    if not 1 <= gone <= source.counts[0] - max(missing, 1):
        raise SettingError(
            f"Expected amount and requests of 1 or more that leave some of {source.counts[0]} classes, the {missing} "
            f"missing ones among them; got {gone} classes to remove. Choose fewer."
        )


class ViTErasureImageNet100(Removal):
    """Four times twenty of ImageNet100's classes are removed from a vision transformer.

    The embedded source has the picture world's first hundred classes.

    Observation: uint8 images ``(B, H, W, 3)``; H = W = 32 (embedded) or the backbone's size (hub, folder).
    Answers: log-probabilities over all classes.

    Version history:
        v0: First.

    Args:
        source: ``"embedded"``, ``"hub"``, or a folder with train and test data right in it (see :mod:`clgym.folder`).
        amount: Classes of each request.
        requests: Number of requests.
        forget: What of the erased classes may be read: ``"none"``, ``"few"`` or ``"full"``.
        retain: What of the others may be read: ``"none"``, ``"few"``, ``"own"`` (what the agent keeps) or ``"full"``.
        shots: Samples per class of ``"few"``; 0 is 65, the paper's 5 %, or 10 on the embedded model; the paper's
            few-shot setting has 4.
        missing: Number of classes that remain to the end of which nothing may be read; the paper's setting has 5.
        erase_steps: ``Erase`` events per request; 0 is 1,000, or 60 on the embedded model.
        steps: ``Train`` events of the task that teaches all classes; 0 is 1,000, or 400 on the embedded model.
        backbone: Pre-trained model for a folder, ``"embedded/tiny-vit"`` or a timm name such as
            ``"timm/vit_base_patch16_224.augreg_in21k_ft_in1k"``; the other sources have their own.

    Raises:
        SettingError: A setting is out of range.
        SourceError: The folder is malformed.
        SourceMissingError: The hub's data are not on this machine.
    """

    spec = ScenarioSpec(
        id="ViT-Erasure-ImageNet100-v0",
        title="Removing ImageNet100's classes from a vision transformer",
        paper="arXiv:2501.09705",
        kind="class-incremental",
        modality="image",
        description=(
            "A hundred classes are learned in one task. Then twenty must be removed, four times, until twenty are "
            "left; the erased ones must no longer be recognised."
        ),
        metrics=("average_accuracy",),
        licences=(
            ("embedded pictures", "Apache-2.0, drawn by the package"),
            ("hub", "ImageNet's terms: research and education"),
        ),
        hub=("imagenet100",),
        hub_backbone="timm/vit_base_patch16_224.augreg_in21k_ft_in1k",
    )

    def __init__(
        self,
        *,
        source: str = "embedded",
        amount: int = 20,
        requests: int = 4,
        forget: str = "few",
        retain: str = "few",
        shots: int = 0,
        missing: int = 0,
        erase_steps: int = 0,
        steps: int = 0,
        backbone: str = "",
    ) -> None:
        """Check the settings; a folder is read here, so that its faults show at once."""
        self.set_up(
            class_source("imagenet100", source, backbone, "vit"),
            amount=amount,
            requests=requests,
            forget=forget,
            retain=retain,
            shots=shots,
            usual_shots=65,
            missing=missing,
            erase_steps=erase_steps,
            steps=steps,
        )


class FaceErasure(Removal):
    """Four times twenty of a hundred people are removed from a recogniser.

    The paper's CASIA-Face100 is on no hub, so there is no hub source: pass a folder that holds it. The embedded source
    has a hundred classes of the picture world, from eight domains; they are no faces.

    Observation: uint8 images ``(B, H, W, 3)``; H = W = 32 (embedded) or the backbone's size (folder).
    Answers: log-probabilities over all classes.

    Version history:
        v0: First.

    Args:
        source: ``"embedded"``, or a folder with train and test data right in it (see :mod:`clgym.folder`).
        amount: People of each request; the paper's single requests have 5, 10, 50 or 90.
        requests: Number of requests.
        forget: What of the erased people may be read: ``"none"``, ``"few"`` or ``"full"``.
        retain: What of the others may be read: ``"none"``, ``"few"``, ``"own"`` (what the agent keeps) or ``"full"``.
        shots: Samples per person of ``"few"``; 0 is 40, about the paper's 10 %, or 10 on the embedded model; the
            paper's few-shot setting has 4.
        missing: Number of people that remain to the end of whom nothing may be read; the paper's setting has 5.
        erase_steps: ``Erase`` events per request; 0 is 1,000, or 60 on the embedded model.
        steps: ``Train`` events of the task that teaches everybody; 0 is 1,000, or 400 on the embedded model.
        backbone: Pre-trained model for a folder, ``"embedded/tiny-vit"`` or a timm name such as
            ``"timm/vit_base_patch16_224.augreg_in21k_ft_in1k"``.

    Raises:
        SettingError: A setting is out of range, or the source is the hub.
        SourceError: The folder is malformed.
    """

    spec = ScenarioSpec(
        id="Face-Erasure-v0",
        title="Removing people from a face recogniser",
        paper="arXiv:2501.09705",
        kind="class-incremental",
        modality="image",
        description=(
            "A hundred people (classes of pictures in the embedded source) are learned in one task. Then twenty must "
            "be removed, four times, until twenty are left; the erased ones must no longer be recognised."
        ),
        metrics=("average_accuracy",),
        licences=(("embedded pictures", "Apache-2.0, drawn by the package"),),
    )

    def __init__(
        self,
        *,
        source: str = "embedded",
        amount: int = 20,
        requests: int = 4,
        forget: str = "few",
        retain: str = "few",
        shots: int = 0,
        missing: int = 0,
        erase_steps: int = 0,
        steps: int = 0,
        backbone: str = "",
    ) -> None:
        """Check the settings; a folder is read here, so that its faults show at once."""
        if source == "hub":
            raise SettingError(
                "Expected source 'embedded' or a folder; got 'hub', where the paper's faces are not. Download "
                "CASIA-Face100 from the authors of arXiv:2501.09705 and pass its folder."
            )
        self.set_up(
            class_source("cifar100", source, backbone, "vit"),
            amount=amount,
            requests=requests,
            forget=forget,
            retain=retain,
            shots=shots,
            usual_shots=40,
            missing=missing,
            erase_steps=erase_steps,
            steps=steps,
        )
