"""Pre-train the tiny vision transformer from nothing: `python -m clgym.worlds.pretrain_vit`.

Draws pictures whose attribute combinations are in no domain, as for the tiny CLIP, and trains the model to name their
kind and the value of each of their attributes, which is as near as this world comes to supervised ImageNet. Writes the
weights and, beside them, a JSON description with their sha256, the settings and how well frozen features tell the
classes of every domain apart.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from clgym.worlds import captions, pictures, tiny_clip, tiny_vit
from clgym.worlds.tables import KINDS

DRAWN = [kind for kind in KINDS if kind.attributes]
IGNORED = -100  # what cross-entropy leaves out: a kind has no value for another kind's attribute


def labelled(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Draw about ``n`` pictures, equally many of every kind.

    Returns:
        Pictures uint8 ``(n, 32, 32, 3)`` and targets int64 ``(n, 1 + attributes)``: the kind, then the value of every
        attribute of every kind, :data:`IGNORED` where it has none.
    """
    each = n // len(DRAWN)
    width = 1 + sum(len(kind.attributes) for kind in DRAWN)
    targets = np.full((each * len(DRAWN), width), IGNORED, np.int64)
    drawn, column = [], 1
    for number, kind in enumerate(DRAWN):
        rows = slice(number * each, (number + 1) * each)
        values = captions.sample_combinations(kind, rng, each)
        names = [name for name, _ in kind.attributes]
        drawn.append(captions.paint(kind, rng, {name: values[:, i] for i, name in enumerate(names)}))
        targets[rows, 0] = number
        targets[rows, column : column + len(names)] = values
        column += len(names)
    return torch.from_numpy(np.concatenate(drawn)), torch.from_numpy(targets)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over all questions that a batch ``(B, 1 + attributes)`` answers."""
    sizes = [len(DRAWN), *(len(values) for kind in DRAWN for _, values in kind.attributes)]
    parts = zip(torch.split(logits, sizes, dim=1), targets.T, strict=True)
    total = sum(
        (functional.cross_entropy(part, target, ignore_index=IGNORED, reduction="sum") for part, target in parts),
        torch.zeros(()),
    )
    return total / (targets != IGNORED).sum()


def train(*, steps: int, batch: int, images: int, seed: int, rate: float) -> tuple[VisionTransformer, float]:
    """Pre-train a model.

    Returns:
        The model without its classifier, and the loss averaged over the last fiftieth of the steps.
    """
    rng = np.random.default_rng(seed)
    inputs, targets = labelled(rng, images)
    outputs = len(DRAWN) + sum(len(values) for kind in DRAWN for _, values in kind.attributes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tiny_vit.build()
        classifier = nn.Linear(tiny_vit.CONFIG["embed_dim"], outputs)
    optimizer = torch.optim.AdamW([*model.parameters(), *classifier.parameters()], lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    losses: list[float] = []
    order = np.empty(0, dtype=np.int64)
    with Progress() as progress:
        bar = progress.add_task("pre-training", total=steps)
        for _ in range(steps):
            if len(order) < batch:
                order = rng.permutation(len(inputs))
            rows, order = torch.from_numpy(order[:batch]), order[batch:]
            loss = loss_of(classifier(model(tiny_clip.normalise(inputs[rows]))), targets[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.update(bar, advance=1)
    return model.eval(), float(np.mean(losses[-max(1, steps // 50) :]))


@torch.inference_mode()
def nearest_mean(model: VisionTransformer, name: str) -> float:
    """Return the accuracy of nearest class means of a domain's frozen features, by cosine, in [0, 1]."""
    features = {}
    for split, per_class in (("train", 40), ("test", 20)):
        inputs, labels = pictures.draw(name, "train" if split == "train" else "test", per_class)
        found = model(tiny_clip.normalise(torch.from_numpy(inputs)))
        features[split] = functional.normalize(found, dim=-1), torch.from_numpy(labels)
    (x, y), (x_test, y_test) = features["train"], features["test"]
    means = torch.stack([x[y == c].mean(0) for c in range(int(y.max()) + 1)])
    return float(((x_test @ functional.normalize(means, dim=-1).T).argmax(1) == y_test).float().mean())


def write(model: VisionTransformer, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Write weights and description, and return the description."""
    blob = save({name: value.detach().clone().contiguous() for name, value in model.state_dict().items()})
    accuracy = {name: round(nearest_mean(model, name), 4) for name in pictures.DOMAINS}
    description = {
        "model": tiny_vit.CONFIG,
        "mean": tiny_vit.MEAN,
        "std": tiny_vit.STD,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": hashlib.sha256(blob).hexdigest(),
        "pictures_revision": pictures.REVISION,
        "training": settings,
        "nearest_mean": accuracy,
    }
    out.write_bytes(blob)
    out.with_suffix(".json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return description


def main() -> None:
    """Run the pre-training with settings from the command line."""
    parser = argparse.ArgumentParser(description="Pre-train the tiny vision transformer of the embedded picture world.")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=128, help="pictures per step")
    parser.add_argument("--images", type=int, default=40_000, help="pictures drawn in all")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of pictures, weights and order")
    parser.add_argument("--out", type=Path, default=tiny_vit.WEIGHTS, help="where the weights are written")
    settings = vars(parser.parse_args())
    out = settings.pop("out")
    model, loss = train(**settings)
    description = write(model, out, {**settings, "loss": round(loss, 4), "torch": torch.__version__})
    for name, accuracy in description["nearest_mean"].items():
        print(f"{name:14s} {100 * accuracy:5.1f} %")
    print(f"{out}  sha256 {description['sha256']}")


if __name__ == "__main__":
    main()
