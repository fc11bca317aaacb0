"""Measure the embedded class-incremental streams without training, and draw their contact sheets.

    python benchmarks/measure_streams.py --sheet docs/img

The nearest class mean and a ridge regression on the frozen features of the tiny vision transformer, over all classes
at once, and the zero-shot accuracy of the tiny CLIP: what a method starts from, and how hard a stream is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from clgym.backbones import load_clip
from clgym.scenario import Data
from clgym.sources import STREAMS, TINY_CLIP, TINY_VIT, embedded_classes, embedded_task
from clgym.vit import load_vit
from clgym.worlds import composed, pretrain_yolos, tiny_yolos
from clgym.worlds.styles import STYLES

CPU = torch.device("cpu")


def features(backbone: object, data: Data) -> Tensor:
    """Return L2-normalised features of all images, `(N, d)`."""
    parts = []
    for start in range(0, len(data), 256):
        index = np.arange(start, min(start + 256, len(data)))
        with torch.inference_mode():
            parts.append(backbone.encode_images(torch.from_numpy(np.asarray(data.batch(index)))))  # type: ignore[attr-defined]
    return functional.normalize(torch.cat(parts), dim=-1)


def measure(stream: str) -> str:
    """Return a row of the table: accuracies in percent."""
    tasks = embedded_classes(stream)
    starts = np.cumsum([0, *(len(task.classes) for task in tasks)]).tolist()
    labels = [
        torch.cat([torch.from_numpy(half(task).targets) + start for task, start in zip(tasks, starts, strict=False)])
        for half in (lambda task: task.train, lambda task: task.test)
    ]
    vit, clip = load_vit(TINY_VIT, CPU), load_clip(TINY_CLIP, CPU)
    train = torch.cat([features(vit, task.train) for task in tasks])
    test = torch.cat([features(vit, task.test) for task in tasks])
    targets = functional.one_hot(labels[0]).float()
    means = functional.normalize(targets.T @ train, dim=-1)
    ridge = torch.linalg.solve(train.T @ train + 0.01 * torch.eye(train.shape[1]), train.T @ targets)
    prompts = tuple(texts for task in tasks for texts in task.prompts)
    with torch.inference_mode():
        texts = clip.class_features(prompts, ensemble=False)
    images = torch.cat([features(clip, task.test) for task in tasks])
    found = [test @ means.T, test @ ridge, images @ texts.T]
    cells = [f"{100 * scores.argmax(1).eq(labels[1]).float().mean():.1f}" for scores in found]
    return f"| {stream} | {starts[-1]} | {' | '.join(cells)} |"


def sheet(path: Path, rows: list[np.ndarray]) -> None:
    """Write rows of pictures as one PNG, twice as large."""
    whole = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    Image.fromarray(whole).resize((2 * whole.shape[1], 2 * whole.shape[0]), Image.Resampling.NEAREST).save(path)


def sheets(folder: Path) -> None:
    """Draw two things of every domain in every style, and hard to see."""
    names = ("objects", "small_objects", "textures", "satellite", "flowers", "dishes", "pets", "scenes")
    shown = np.concatenate([np.asarray(embedded_task(name).train.batch(np.array([0, 200]))) for name in names])
    sheet(folder / "streams_styles.png", [style(shown) for style in STYLES.values()])
    (hard,) = embedded_classes("imagenet_a")
    starts = [np.searchsorted(hard.train.targets, c) for c in range(0, 100, 6)][:16]
    sheet(folder / "streams_hard.png", [np.asarray(hard.train.batch(np.array(starts) + i)) for i in range(4)])


def scenes_sheet(folder: Path) -> None:
    """Draw test scenes with what the tiny detector sees in them."""
    import matplotlib.pyplot as plt

    scenes = composed.draw("test", 12)
    found = pretrain_yolos.detect(tiny_yolos.load(), scenes.pictures)
    figure, axes = plt.subplots(3, 4, figsize=(10, 8.2), layout="constrained")
    for picture, slots, axis in zip(scenes.pictures, found, axes.flat, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_axis_off()
        seen = sorted(f"{composed.CLASSES[slot[4:].argmax()]} {100 * slot[4:].max():.0f}" for slot in sure(slots))
        axis.set_title(", ".join(seen), fontsize=9)
        for x, y, width, height in (composed.SCENE * sure(slots)[:, :4]).tolist():
            corner = x - width / 2 - 0.5, y - height / 2 - 0.5
            axis.add_patch(plt.Rectangle(corner, width, height, fill=False, color="red", linewidth=1.5))
    figure.savefig(folder / "streams_boxes.png", dpi=80)
    plt.close(figure)


def sure(slots: np.ndarray) -> np.ndarray:
    """Return the slots `(Q, 4 + C)` that hold something with a probability above one half."""
    return slots[slots[:, 4:].max(axis=1) > 0.5]


def main() -> None:
    """Print the table; draw the sheets if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sheet", type=Path, help="folder for the contact sheets")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.sheet:
        sheets(chosen.sheet)
        scenes_sheet(chosen.sheet)
    print("| stream | classes | nearest mean | ridge | tiny CLIP zero-shot |\n|---|---|---|---|---|")
    for stream in STREAMS:
        print(measure(stream))


if __name__ == "__main__":
    main()
