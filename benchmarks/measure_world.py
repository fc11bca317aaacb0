"""Measure the embedded picture world: zero-shot, joint LoRA, sequential LoRA, and the contact sheet.

    python benchmarks/measure_world.py --seeds 0 1 2 --sheet docs/img

The LoRA in here is its own, on purpose: the numbers say something about the world, so they must not move
when an agent does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from torch import nn
from torch.nn import functional

from clgym.worlds import pictures, tiny_clip
from clgym.worlds.tokenizer import WordTokenizer


@dataclass(frozen=True)
class Budget:
    """What every way of training may spend."""

    train_per_class: int = 40
    test_per_class: int = 20
    steps: int = 100
    batch: int = 32
    rank: int = 16


@dataclass(frozen=True)
class Task:
    """One domain as tensors."""

    name: str
    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor
    prompts: torch.Tensor


class LowRank(nn.Module):
    """A parametrization that adds `up @ down` to a weight; factor 1."""

    def __init__(self, weight: torch.Tensor, blocks: int, rank: int, rng: torch.Generator) -> None:
        """Take the frozen weight `(blocks * out, in)`; each block has factors of its own."""
        super().__init__()
        out, width = weight.shape[0] // blocks, weight.shape[1]
        bound = 1.0 / math.sqrt(width)
        down = torch.empty(blocks, rank, width).uniform_(-bound, bound, generator=rng)
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(blocks, out, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight with the LoRA added."""
        return weight + (self.up @ self.down).reshape(weight.shape)


def _targets(model: CLIP) -> list[tuple[nn.Module, str, int]]:
    """List module, parameter and number of stacked linears of q, k, v, out, c_fc and c_proj of every block."""
    found: list[tuple[nn.Module, str, int]] = []
    for tower in (model.visual.transformer, model.transformer):
        for block in tower.resblocks:
            found.append((block.attn, "in_proj_weight", 3))
            found.extend((m, "weight", 1) for m in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj))
    return found


def attach(model: CLIP, rank: int, rng: torch.Generator) -> list[nn.Parameter]:
    """Put a fresh LoRA on the model and return its parameters; everything else is frozen."""
    model.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for module, name, blocks in _targets(model):
        low_rank = LowRank(getattr(module, name), blocks, rank, rng)
        nn.utils.parametrize.register_parametrization(module, name, low_rank)
        trained += [low_rank.down, low_rank.up]
    return trained


def merge(model: CLIP) -> None:
    """Fold the LoRA into the weights."""
    for module, name, _ in _targets(model):
        nn.utils.parametrize.remove_parametrizations(module, name)


def tasks(budget: Budget, tokenizer: WordTokenizer) -> list[Task]:
    """Draw all domains."""
    drawn = []
    for name in pictures.DOMAINS:
        info = pictures.domain(name)
        train, labels = pictures.draw(name, "train", budget.train_per_class)
        test, test_labels = pictures.draw(name, "test", budget.test_per_class)
        prompts = tokenizer([info.template.format(label) for label in info.classes])
        tensors = (tiny_clip.normalise(torch.from_numpy(train)), torch.from_numpy(labels))
        held = (tiny_clip.normalise(torch.from_numpy(test)), torch.from_numpy(test_labels))
        drawn.append(Task(name, *tensors, *held, prompts))
    return drawn


def loss_of(model: CLIP, task: Task, rows: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy over the task's own classes."""
    image = model.encode_image(task.train[rows], normalize=True)
    text = model.encode_text(task.prompts, normalize=True)
    return functional.cross_entropy(model.logit_scale.exp() * image @ text.T, task.train_labels[rows])


def evaluate(model: CLIP, all_tasks: list[Task]) -> NDArray[np.float64]:
    """Return the test accuracy on every domain, in its own label space."""
    accuracy = []
    with torch.no_grad():
        for task in all_tasks:
            text = model.encode_text(task.prompts, normalize=True)
            image = model.encode_image(task.test, normalize=True)
            accuracy.append(((image @ text.T).argmax(1) == task.test_labels).float().mean().item())
    return np.asarray(accuracy)


def fit(model: CLIP, streams: list[Task], steps: int, rate: float, budget: Budget, rng: np.random.Generator) -> None:
    """Train a fresh LoRA on the tasks (one drawn per step when there are several) and merge it."""
    trained = attach(model, budget.rank, torch.Generator().manual_seed(int(rng.integers(2**31))))
    optimizer = torch.optim.AdamW(trained, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    queues: dict[str, NDArray[np.int64]] = {}
    turns = np.concatenate([rng.permutation(len(streams)) for _ in range(-(-steps // len(streams)))])
    for turn in turns[:steps]:
        task = streams[turn]
        queue = queues.get(task.name, np.empty(0, dtype=np.int64))
        if len(queue) < budget.batch:
            queue = np.concatenate([queue, rng.permutation(len(task.train))])
        rows, queues[task.name] = queue[: budget.batch], queue[budget.batch :]
        with nn.utils.parametrize.cached():
            loss = loss_of(model, task, torch.from_numpy(rows))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    merge(model)


def sequential(seed: int, rate: float, all_tasks: list[Task], budget: Budget) -> NDArray[np.float64]:
    """Train the domains one after the other; return R, row 0 zero-shot, row t after t domains."""
    model, _ = tiny_clip.load()
    rng = np.random.default_rng((seed, 1))
    rows = [evaluate(model, all_tasks)]
    for task in all_tasks:
        fit(model, [task], budget.steps, rate, budget, rng)
        rows.append(evaluate(model, all_tasks))
    return np.stack(rows)


def joint(seed: int, rate: float, all_tasks: list[Task], budget: Budget) -> NDArray[np.float64]:
    """Train all domains together, with the same number of steps in all."""
    model, _ = tiny_clip.load()
    fit(model, all_tasks, budget.steps * len(all_tasks), rate, budget, np.random.default_rng((seed, 2)))
    return evaluate(model, all_tasks)


def summary(matrix: NDArray[np.float64]) -> dict[str, float]:
    """Return final average, loss on earlier tasks, transfer and the zero-shot it is to be held against, in percent."""
    after, zero = matrix[1:], matrix[0]
    learned = np.diag(after)
    transfer = [after[:i, i].mean() for i in range(1, len(zero))]
    values = {
        "last": after[-1].mean(),
        "average": after.mean(),
        "learned": learned.mean(),
        "forgetting": (learned - after[-1])[:-1].mean(),
        "transfer": float(np.mean(transfer)),
        "zero_shot_later": zero[1:].mean(),
    }
    return {name: round(100 * float(value), 1) for name, value in values.items()}


def contact_sheet(folder: Path) -> None:
    """Write one picture of samples per domain: a column per class."""
    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")
    for name in pictures.DOMAINS:
        info = pictures.domain(name)
        drawn, _ = pictures.draw(name, "train", 4)
        rows = drawn.reshape(len(info.classes), 4, 32, 32, 3)
        figure, axes = plt.subplots(4, len(info.classes), figsize=(len(info.classes) * 0.92, 4.3), dpi=80)
        for c, label in enumerate(info.classes):
            axes[0, c].set_title(label.replace(" ", "\n"), fontsize=8)
            for r in range(4):
                axes[r, c].imshow(rows[c, r], interpolation="nearest")
                axes[r, c].axis("off")
        figure.suptitle(f"{name} (stands for {info.title})", fontsize=10, x=0.01, ha="left")
        figure.tight_layout(pad=0.3)
        figure.savefig(folder / f"world_{name}.png")
        plt.close(figure)


def measure(args: argparse.Namespace, budget: Budget, all_tasks: list[Task]) -> list[dict[str, Any]]:
    """Run every way of training at every rate and seed, and print what comes out."""
    runs = []
    for way, rates in ((joint, args.joint_rates), (sequential, args.rates)):
        for rate, seed in itertools.product(rates, args.seeds):
            start = time.perf_counter()
            matrix = np.atleast_2d(way(seed, rate, all_tasks, budget))
            seconds = round(time.perf_counter() - start, 1)
            last = {"last": round(100 * float(matrix[-1].mean()), 1)}
            numbers = summary(matrix) if way is sequential else last
            runs.append({"way": way.__name__, "rate": rate, "seed": seed, "seconds": seconds, **numbers})
            runs[-1]["matrix"] = matrix.round(4).tolist()
            print(way.__name__, f"rate {rate:g} seed {seed} {seconds} s", numbers, flush=True)
            print("   ", " ".join(f"{100 * a:.0f}" for a in matrix[-1]), flush=True)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 5e-4, 1e-3, 2e-3])
    parser.add_argument("--joint-rates", type=float, nargs="*", default=[2e-3])
    parser.add_argument("--steps", type=int, default=Budget.steps)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sheet", type=Path, help="folder for the contact sheets")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    budget = Budget(steps=args.steps)
    if args.sheet:
        contact_sheet(args.sheet)
    model, tokenizer = tiny_clip.load()
    all_tasks = tasks(budget, tokenizer)
    zero = evaluate(model, all_tasks)
    by_name = dict(zip(pictures.DOMAINS, (100 * zero).round(1).tolist(), strict=True))
    print("zero-shot", by_name, "mean", round(100 * float(zero.mean()), 1), flush=True)
    runs = measure(args, budget, all_tasks)
    if args.out:
        about = {"budget": asdict(budget), "weights": tiny_clip.card()["sha256"], "torch": torch.__version__}
        args.out.write_text(json.dumps({**about, "zero_shot": by_name, "runs": runs}), encoding="utf-8")


if __name__ == "__main__":
    main()
