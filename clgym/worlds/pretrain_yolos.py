"""Pre-train the tiny detector on composed scenes: `python -m clgym.worlds.pretrain_yolos`.

Starts from the tiny vision transformer and minimises YOLOS' loss (arXiv:2106.00666), with one difference: an object is
not matched to the slot that fits it best, but belongs to that of the quarter of the scene that its centre is in. No two
objects share one, and what is learned is matched as before; it takes a tenth of the steps. Writes the weights and,
beside them, a JSON description with their sha256, the settings and the average precision on scenes not trained on.
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
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_convert, generalized_box_iou_loss
from transformers import YolosForObjectDetection

from clgym.events import Boxes
from clgym.precision import average_precision
from clgym.worlds import composed, tiny_clip, tiny_yolos

TESTED = 500  # scenes
NOTHING = len(composed.CLASSES)


@torch.inference_mode()
def detect(model: YolosForObjectDetection, pictures: Any) -> Boxes:
    """Return detections, float32 ``(B, Q, 4 + C)``: a box of each slot, then the probability of each class."""
    found = [model(tiny_clip.normalise(part)) for part in torch.split(torch.from_numpy(pictures), 100)]
    boxes, logits = torch.cat([out.pred_boxes for out in found]), torch.cat([out.logits for out in found])
    return torch.cat([boxes, logits.softmax(-1)[..., :-1]], dim=-1).numpy()


def settled(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each slot is to hold: classes ``(B, Q)``, :data:`NOTHING` for none, and boxes ``(B, Q, 4)``.

    Args:
        boxes: ``(B, M, 5)``: class, or -1 in rows without an object; then a box.
    """
    scene, row = (boxes[..., 0] >= 0).nonzero(as_tuple=True)
    objects = boxes[scene, row]
    slot = (objects[:, 1] > 0.5).long() + 2 * (objects[:, 2] > 0.5).long()
    classes = torch.full((len(boxes), tiny_yolos.SLOTS), NOTHING)
    places = torch.zeros(len(boxes), tiny_yolos.SLOTS, 4)
    classes[scene, slot], places[scene, slot] = objects[:, 0].long(), objects[:, 1:]
    return classes, places


def loss_of(found: Any, classes: Tensor, places: Tensor) -> Tensor:
    """Return the loss of slots that are to hold these classes ``(B, Q)`` in these boxes ``(B, Q, 4)``."""
    weight = torch.ones(NOTHING + 1)
    weight[NOTHING] = 0.1
    entropy = functional.cross_entropy(found.logits.flatten(0, 1), classes.flatten(), weight=weight)
    held = classes < NOTHING
    mine, true = found.pred_boxes[held], places[held]
    corners = (box_convert(boxes, "cxcywh", "xyxy") for boxes in (mine, true))
    total: Tensor = entropy + 5 * (mine - true).abs().sum(-1).mean() + 2 * generalized_box_iou_loss(*corners).mean()
    return total


def train(*, steps: int, batch: int, images: int, seed: int, rate: float) -> tuple[YolosForObjectDetection, float]:
    """Pre-train a model.

    Returns:
        The model, and the loss averaged over the last fiftieth of the steps.
    """
    rng = np.random.default_rng(seed)
    scenes = composed.draw("train", images)
    classes, places = settled(torch.from_numpy(scenes.boxes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tiny_yolos.build()
        tiny_yolos.start_from_vit(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    losses: list[float] = []
    order = np.empty(0, dtype=np.int64)
    model.train()
    with Progress() as progress:
        bar = progress.add_task("pre-training", total=steps)
        for _ in range(steps):
            if len(order) < batch:
                order = rng.permutation(len(scenes))
            rows, order = order[:batch], order[batch:]
            found = model(tiny_clip.normalise(torch.from_numpy(scenes.pictures[rows])))
            loss = loss_of(found, classes[rows], places[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.update(bar, advance=1)
    model.train(False)
    return model, float(np.mean(losses[-max(1, steps // 50) :]))


def write(model: YolosForObjectDetection, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Write weights and description, and return the description."""
    blob = save({name: value.detach().clone().contiguous() for name, value in model.state_dict().items()})
    out.write_bytes(blob)
    scenes = composed.draw("test", TESTED)
    precision = average_precision(detect(model, scenes.pictures), scenes.boxes)
    description = {
        "model": tiny_yolos.CONFIG,
        "mean": tiny_clip.MEAN,
        "std": tiny_clip.STD,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": hashlib.sha256(blob).hexdigest(),
        "training": settings,
        "scenes": TESTED,
        "mAP": round(float(precision.AP.mean()), 4),
        "AP50": round(float(precision.AP50.mean()), 4),
    }
    out.with_suffix(".json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return description


def main() -> None:
    """Run the pre-training with settings from the command line."""
    parser = argparse.ArgumentParser(description="Pre-train the tiny detector of the embedded picture world.")
    parser.add_argument("--steps", type=int, default=3000, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=32, help="scenes per step")
    parser.add_argument("--images", type=int, default=20_000, help="scenes drawn in all")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order")
    parser.add_argument("--out", type=Path, default=tiny_yolos.WEIGHTS, help="where the weights are written")
    settings = vars(parser.parse_args())
    out = settings.pop("out")
    model, loss = train(**settings)
    description = write(model, out, {**settings, "loss": round(loss, 4), "torch": torch.__version__})
    print(f"mAP {description['mAP']}, AP50 {description['AP50']}")
    print(f"{out}  sha256 {description['sha256']}")


if __name__ == "__main__":
    main()
