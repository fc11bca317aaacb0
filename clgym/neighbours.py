"""Which retained classes lie next to erased ones, in the frozen backbone's eyes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from clgym.backbones import ClipBackbone, load_backbone
from clgym.scenario import Task

SHARE = 0.1  # of the retained classes, at least one
PICTURES = 16  # training images of a class that stand for it where the backbone reads no texts
AT_ONCE = 256  # images that are encoded together


class Neighbours:
    """The classes of a stream by nearness: the cosine of their features on the untrained model.

    A class is the text feature of its first prompt on CLIP, and the mean of image features on other models. A name in
    several tasks is one class, that of the first. Nothing is computed before it is asked for, and nothing twice.

    Args:
        backbone: Name of the pre-trained model.
        tasks: The tasks in the order they are learned.
    """

    def __init__(self, backbone: str, tasks: Sequence[Task]) -> None:
        """Keep what the features follow from."""
        self._backbone, self._tasks = backbone, tasks
        self._known: dict[str, tuple[int, int]] = {}
        for t, task in enumerate(tasks):
            for c, name in enumerate(task.classes):
                self._known.setdefault(name, (t, c))

    @cached_property
    @torch.no_grad()
    def _features(self) -> Tensor:
        """A row of length 1 for every class ``(C, d)``."""
        model = load_backbone(self._backbone, torch.device("cpu"))
        if isinstance(model, ClipBackbone):
            rows = model.encode_texts([self._tasks[t].prompts[c][0] for t, c in self._known.values()])
        else:
            images = [_pictures(self._tasks[t], c) for t, c in self._known.values()]
            every = torch.split(torch.cat(images), AT_ONCE)
            features = torch.cat([model.encode_images(part).float() for part in every])
            parts = torch.split(features, [len(part) for part in images])
            rows = torch.stack([part.mean(dim=0) for part in parts])
        return torch.nn.functional.normalize(rows.float(), dim=-1)

    def nearest(self, tasks: int, erased: Sequence[str]) -> list[str]:
        """Return the retained classes nearest to any of the erased ones, nearest first.

        Args:
            tasks: Number of tasks learned so far.
            erased: Names of the erased classes.
        """
        met = [i for i, (t, _) in enumerate(self._known.values()) if t < tasks]
        names = list(self._known)
        gone = [i for i in met if names[i] in erased]
        kept = [i for i in met if names[i] not in erased]
        if not gone or not kept:
            return []
        closeness = (self._features[kept] @ self._features[gone].T).amax(dim=1)
        count = max(1, round(SHARE * len(kept)))
        order = np.argsort(-closeness.numpy(), kind="stable")[:count]
        return [names[kept[i]] for i in order]


def _pictures(task: Task, label: int) -> Tensor:
    rows = np.flatnonzero(task.train.targets == label)[:PICTURES]
    return torch.from_numpy(np.asarray(task.train.batch(rows)))
