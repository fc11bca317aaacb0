"""Pre-train the tiny CLIP from nothing: `python -m clgym.worlds.pretrain`.

Draws captioned pictures whose attribute combinations are in no domain, trains image and text encoder with
the symmetric contrastive loss of CLIP (arXiv 2103.00020, section 2.3), and writes the weights and, beside
them, a JSON description with their sha256, the settings and the zero-shot accuracy on every domain.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from rich.progress import Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save
from torch.nn import functional

from clgym.worlds import captions, pictures, tiny_clip
from clgym.worlds.tokenizer import WordTokenizer, vocabulary_sha256

MAX_LOGIT_SCALE = 100.0
# The released CLIP ends at its limit, which so short a training does not reach. Zero-shot answers do not depend on
# the scale, but how fast fine-tuning learns and overwrites does, and the methods' settings are made for 100.
SHIPPED_LOGIT_SCALE = 100.0


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, same: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the symmetric contrastive loss of unit features.

    Several pictures of a batch can have the same caption in a world this small. They are all right answers
    to each other, so the target is uniform over them, where CLIP would count them as wrong.

    Args:
        image: Unit image features, `(B, d)`.
        text: Unit text features, `(B, d)`.
        same: Whether two captions are equal, `(B, B)` bool.
        scale: Inverse temperature.
    """
    logits = scale * image @ text.T
    target = same.float() / same.sum(1, keepdim=True)
    return 0.5 * (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target))


def zero_shot(model: CLIP, tokenizer: WordTokenizer, name: str, per_class: int = 40) -> float:
    """Return the accuracy on a domain's test pictures with its first template, in [0, 1]."""
    task = pictures.domain(name)
    inputs, labels = pictures.draw(name, "test", per_class)
    with torch.inference_mode():
        text = model.encode_text(tokenizer([task.template.format(c) for c in task.classes]), normalize=True)
        image = model.encode_image(tiny_clip.normalise(torch.from_numpy(inputs)), normalize=True)
    return float(((image @ text.T).argmax(1).numpy() == labels).mean())


def _optimizer(model: CLIP, rate: float) -> torch.optim.AdamW:
    """Decay matrices only: embeddings of words that no caption holds must keep their random values."""
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim < 2 or "embedding" in n]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))


def train(*, steps: int, pairs: int, images: int, seed: int, rate: float) -> tuple[CLIP, float]:
    """Pre-train a model.

    Returns:
        The model, its logit scale set to `SHIPPED_LOGIT_SCALE`, and the loss at the learned scale, averaged over the
        last fiftieth of the steps.
    """
    rng = np.random.default_rng(seed)
    drawn, texts = captions.corpus(rng, images)
    inputs, tokens = torch.from_numpy(drawn), WordTokenizer()(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tiny_clip.build()
        torch.nn.init.normal_(model.token_embedding.weight, std=0.1)
    optimizer = _optimizer(model, rate)
    losses: list[float] = []
    columns = (
        *Progress.get_default_columns()[:2],
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("pre-training", total=steps, loss=math.nan)
        order = np.empty(0, dtype=np.int64)
        for step in range(steps):
            if len(order) < pairs:
                order = rng.permutation(len(inputs))
            rows, order = torch.from_numpy(order[:pairs]), order[pairs:]
            warm, turn = min(1.0, (step + 1) / 100), 0.5 + 0.5 * math.cos(math.pi * step / steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * warm * turn
            text = tokens[rows]
            image_features = model.encode_image(tiny_clip.normalise(inputs[rows]), normalize=True)
            text_features = model.encode_text(text, normalize=True)
            same = (text[:, None] == text[None]).all(-1)
            loss = contrastive_loss(image_features, text_features, same, model.logit_scale.exp())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0.0, math.log(MAX_LOGIT_SCALE))
            losses.append(loss.item())
            progress.update(bar, advance=1, loss=float(np.mean(losses[-50:])))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(SHIPPED_LOGIT_SCALE))
    return model.eval(), float(np.mean(losses[-max(1, steps // 50) :]))


def write(model: CLIP, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Write weights and description, and return the description."""
    state = {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}
    blob = save(state)
    tokenizer = WordTokenizer()
    accuracy = {name: round(zero_shot(model, tokenizer, name), 4) for name in pictures.DOMAINS}
    description = {
        "model": tiny_clip.CONFIG,
        "mean": tiny_clip.MEAN,
        "std": tiny_clip.STD,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": hashlib.sha256(blob).hexdigest(),
        "vocabulary_sha256": vocabulary_sha256(),
        "pictures_revision": pictures.REVISION,
        "training": settings,
        "zero_shot": accuracy,
        "zero_shot_mean": round(float(np.mean(list(accuracy.values()))), 4),
    }
    out.write_bytes(blob)
    out.with_suffix(".json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return description


def main() -> None:
    """Run the pre-training with settings from the command line."""
    parser = argparse.ArgumentParser(description="Pre-train the tiny CLIP of the embedded picture world.")
    parser.add_argument("--steps", type=int, default=1200, help="optimizer steps")
    parser.add_argument("--pairs", type=int, default=256, help="pictures with a caption per step")
    parser.add_argument("--images", type=int, default=40_000, help="pictures drawn in all")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of pictures, weights and order")
    parser.add_argument("--out", type=Path, default=tiny_clip.WEIGHTS, help="where the weights are written")
    settings = vars(parser.parse_args())
    out = settings.pop("out")
    model, loss = train(**settings)
    description = write(model, out, {**settings, "loss": round(loss, 4), "torch": torch.__version__})
    for name, accuracy in description["zero_shot"].items():
        print(f"{name:14s} {100 * accuracy:5.1f} %")
    print(f"{'mean':14s} {100 * description['zero_shot_mean']:5.1f} %   {out}  sha256 {description['sha256']}")


if __name__ == "__main__":
    main()
