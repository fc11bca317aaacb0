"""Which retained classes lie next to erased ones, in the frozen backbone's eyes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from clgym.backbones import ClipBackbone, load_backbone
from clgym.scenario import Task

SHARE = 0.1  # of the retained classes, at least one
PICTURES = 16  # training images of a class that stand for it where the backbone reads no texts


@torch.no_grad()
def nearest(backbone: str, tasks: Sequence[Task], erased: Sequence[str]) -> list[str]:
    """Return the retained classes nearest to any of the erased ones, nearest first.

    Nearness is the cosine of the classes' text features (first prompt) on CLIP, and of the means of image features
    on other models, untrained in either case.

    Args:
        backbone: Name of the pre-trained model.
        tasks: The tasks learned so far; a name in several tasks is one class.
        erased: Names of the erased classes.
    """
    first: dict[str, tuple[int, int]] = {}
    for t, task in enumerate(tasks):
        for c, name in enumerate(task.classes):
            first.setdefault(name, (t, c))
    model = load_backbone(backbone, torch.device("cpu"))
    if isinstance(model, ClipBackbone):
        features = model.encode_texts([tasks[t].prompts[c][0] for t, c in first.values()])
    else:
        features = torch.stack([_mean(model, tasks[t], c) for t, c in first.values()])
    features = torch.nn.functional.normalize(features.float(), dim=-1)
    names = list(first)
    gone = [i for i, name in enumerate(names) if name in erased]
    kept = [i for i, name in enumerate(names) if name not in erased]
    if not gone or not kept:
        return []
    closeness = (features[kept] @ features[gone].T).amax(dim=1)
    count = max(1, round(SHARE * len(kept)))
    order = np.argsort(-closeness.numpy(), kind="stable")[:count]
    return [names[kept[i]] for i in order]


def _mean(model: torch.nn.Module, task: Task, label: int) -> torch.Tensor:
    rows = np.flatnonzero(task.train.targets == label)[:PICTURES]
    images = torch.from_numpy(np.asarray(task.train.batch(rows)))
    mean: torch.Tensor = model.encode_images(images).float().mean(dim=0)  # type: ignore[operator]
    return mean
