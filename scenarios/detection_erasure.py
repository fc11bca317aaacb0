"""Continual removal of classes from an object detector, after the protocol of GS-LoRA.

A pre-trained detector learns all classes in one task, then loses some at each request. Goal ``"removal"``: objects of
these classes must no longer be found. After each request all classes are looked for; what stays and what goes is told
by the average precision of classes (``clgym erasure``): Acc_r, Acc_f, Acc_o, Acc_m and H-mean of GS-LoRA, with
mAP@[.50:.95] in the place of accuracy.

What may be read to forget are pictures with an object of the classes that must go, and of their objects only these; to
retain, pictures without any. A picture that holds a class that went is gone with it.

Departs from the paper (arXiv:2403.11530), which removes classes of COCO from Deformable DETR: the detector here is
YOLOS (arXiv:2106.00666), a plain vision transformer, which low-rank adapters of its blocks reach. The stream begins
with a task that teaches all classes, so that every agent has the same data and steps for it. Pictures are squeezed to
squares. Steps are counted, not epochs, and how many classes go at a time is not the paper's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from clgym.agent import EMBEDDED_YOLOS
from clgym.demands import of_classes
from clgym.detection_sources import detection_source
from clgym.errors import SettingError
from clgym.scenario import Request, Scenario, ScenarioSpec, Task, Teaching
from clgym.variants import not_negative

SEED = 1337  # of the order of classes, as in GS-LoRA's streams of classification


class DetectionErasure(Scenario):
    """Classes are removed from an object detector, some at a time.

    The embedded source has composed scenes of the picture world with one to three objects of twelve classes.

    Observation: uint8 images ``(B, H, W, 3)``; H = W = 64 (embedded) or 512 (hub, folder).
    Answers: detections ``(B, Q, 4 + C)``.

    Version history:
        v0: First.

    Args:
        source: ``"embedded"``, ``"hub"`` (COCO 2017), or a folder with ``train.parquet`` and ``test.parquet`` of the
            hub set's columns: image, width, height, objects{category, bbox}.
        amount: Classes of each request; 0 is 10, or 2 with the embedded detector.
        requests: Number of requests.
        forget: What of the erased classes may be read: ``"none"``, ``"few"`` or ``"full"``.
        retain: What of the others may be read: ``"none"``, ``"few"``, ``"own"`` (what the agent keeps) or ``"full"``.
        shots: Pictures per class of ``"few"``; 0 is 100, or 20 with the embedded detector.
        missing: Number of classes that remain to the end of which nothing may be read.
        erase_steps: ``Erase`` events per request; 0 is 1,000, or 60 with the embedded detector.
        steps: ``Train`` events of the task that teaches all classes; 0 is 1,000, or 100 with the embedded detector.
        boxes: How boxes of hub or folder are read: ``"corners"``, ``"sizes"``, or ``""``, which the boxes decide.
        backbone: Pre-trained detector for a folder, ``"embedded/tiny-yolos"``, ``"transformers/hustvl/yolos-tiny"``
            (also if it is empty) or ``"transformers/hustvl/yolos-small"``; the other sources have their own.

    Raises:
        SettingError: A setting is out of range.
        SourceError: The folder is malformed.
        SourceMissingError: The hub's data are not on this machine.
    """

    spec = ScenarioSpec(
        id="Detection-Erasure-v0",
        title="Removing classes from an object detector",
        paper="arXiv:2403.11530",
        kind="class-incremental",
        modality="detection",
        description=(
            "A pre-trained detector learns all classes in one task. Then some must be removed, three times; objects of "
            "the erased ones must no longer be found. Accuracies are mAP@[.50:.95]."
        ),
        metrics=("average_accuracy",),
        licences=(
            ("embedded scenes", "Apache-2.0, drawn by the package"),
            ("hub", "COCO: annotations CC BY 4.0; pictures under Flickr's terms"),
        ),
        hub=("coco",),
        hub_backbone="transformers/hustvl/yolos-tiny",
    )

    def __init__(
        self,
        *,
        source: str = "embedded",
        amount: int = 0,
        requests: int = 3,
        forget: str = "few",
        retain: str = "few",
        shots: int = 0,
        missing: int = 0,
        erase_steps: int = 0,
        steps: int = 0,
        boxes: str = "",
        backbone: str = "",
    ) -> None:
        """Check the settings; a folder is read here, so that its faults show at once."""
        not_negative(amount=amount, shots=shots, missing=missing, erase_steps=erase_steps, steps=steps)
        known = {"forget": ("none", "few", "full"), "retain": ("none", "few", "own", "full")}
        for name, value in (("forget", forget), ("retain", retain)):
            if value not in known[name]:
                choices = ", ".join(map(repr, known[name]))
                raise SettingError(f"Expected {name} as one of {choices}; got {value!r}. Choose one.")
        data = detection_source(source, backbone, boxes)
        small = data.backbone == EMBEDDED_YOLOS
        self._amount, self._requests, self._missing = amount or (2 if small else 10), requests, missing
        gone = self._amount * requests
        if not 1 <= gone <= data.classes - max(missing, 1):
            raise SettingError(
                f"Expected requests of 1 or more that leave some of {data.classes} classes, the {missing} missing ones "
                f"among them; got {gone} classes to remove. Choose fewer."
            )
        data.require(self.spec.id)
        self._data, self.source, self.backbone = data, data.name, data.backbone
        self.shape, self.classes = (data.size, data.size, 3), data.classes
        self._how: dict[str, Any] = {"forget": forget, "retain": retain, "goal": "removal"}
        few = shots or (20 if small else 100)
        self._how |= {
            "shots": few if "few" in (forget, retain) else 0,
            "steps": erase_steps or (60 if small else 1000),
        }
        self.teaching = Teaching(
            batch_size=16 if small else 8,
            steps=steps or (100 if small else 1000),
            query_size=256 if small else 32,
            labels="union",
        )

    def tasks(self, rng: np.random.Generator) -> Sequence[Task]:
        """Return the one task that teaches all classes."""
        del rng
        return [self._data.load()]

    def requests(self, tasks: Sequence[Task], rng: np.random.Generator) -> Sequence[Request]:
        """Return the requests, each for the last classes of the order that are left."""
        del rng
        names = list(tasks[0].classes)
        random.Random(SEED).shuffle(names)
        out = []
        for i in range(self._requests):
            gone = names[len(names) - self._amount * (i + 1) : len(names) - self._amount * i]
            out.append(of_classes(tasks, gone, after=1, missing=tuple(names[: self._missing]), **self._how))
        return out
