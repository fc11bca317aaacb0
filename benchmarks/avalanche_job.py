"""One job in Avalanche and in clgym, for C7 of ``kernels_cpu.py``: five tasks, SGD, all tasks asked between them.

Five tasks of 2,000 random uint8 images of 32 by 32 with two classes each, one pass in batches of 64, 500 questions a
task before the first task and after every one, on all five. Both sides train the same model with plain SGD and
normalise alike; Avalanche runs its ``Naive`` strategy with an evaluation plugin of accuracies and no logger. Needs
``avalanche-lib`` 0.6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clgym.env import ContinualEnv
from clgym.events import Query, Train

TASKS, SAMPLES, QUESTIONS, BATCH = 5, 2000, 500, 64
Run = Callable[[nn.Module], None]


def model_of(name: str) -> nn.Module:
    """Return the model ``"mlp"`` or ``"cnn"``, always the same one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "mlp":
            return nn.Sequential(nn.Flatten(), nn.Linear(3072, 128), nn.ReLU(), nn.Linear(128, 2 * TASKS))
        convolutions = nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 64, 2 * TASKS))


def floats(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float().div_(255).sub_(0.5)


def by_clgym(scenario: Any) -> Run:
    def run(model: nn.Module) -> None:
        env = ContinualEnv(scenario)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        event, done = env.reset(seed=0)[0], False
        while not done:
            answer = None
            if isinstance(event, Train):
                optimizer.zero_grad()
                model.train()
                logits = model(floats(torch.from_numpy(event.inputs)))
                torch.autograd.backward(nn.functional.cross_entropy(logits, torch.from_numpy(event.targets)))
                optimizer.step()
            elif isinstance(event, Query):
                model.eval()
                with torch.no_grad():
                    logits = model(floats(torch.from_numpy(event.inputs)))[:, : len(event.candidates)]
                answer = logits.log_softmax(-1).numpy()
            event, _, done, _, _ = env.step(answer)
        env.report()

    return run


def by_avalanche(images: np.ndarray) -> Run:
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    class Share(torch.utils.data.Dataset[tuple[Tensor, int]]):
        """The images of one task, one at a time."""

        def __init__(self, part: Tensor, first: int) -> None:
            """Number the classes from ``first``."""
            self.part = part
            self.targets = [first + i % 2 for i in range(len(part))]

        def __len__(self) -> int:
            """Count the images."""
            return len(self.part)

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            """Return an image and its class."""
            return floats(self.part[i][None])[0], self.targets[i]

    shares = [torch.from_numpy(part) for part in np.array_split(images, TASKS)]
    train = [as_classification_dataset(Share(part, 2 * t)) for t, part in enumerate(shares)]
    test = [as_classification_dataset(Share(part[:QUESTIONS], 2 * t)) for t, part in enumerate(shares)]
    benchmark = benchmark_from_datasets(train=train, test=test)

    def run(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        plugin = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
        sizes = {"train_mb_size": BATCH, "eval_mb_size": BATCH, "train_epochs": 1}
        strategy = Naive(model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), evaluator=plugin, **sizes)
        strategy.eval(benchmark.test_stream)
        for experience in benchmark.train_stream:
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)

    return run


def work_of(name: str, run: Run) -> tuple[int, int]:
    """Return how many images are trained on and asked, once each has moved the model's weights."""
    model, counts = model_of(name), {True: 0, False: 0}

    def count(module: nn.Module, args: tuple[Tensor]) -> None:
        counts[module.training] += len(args[0])

    model.register_forward_pre_hook(count)
    run(model)
    start = model_of(name)
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))
    return counts[True], counts[False]


def variants_of(name: str, scenario: Callable[..., Any], images: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return the runs to be timed, for the model ``"mlp"`` or ``"cnn"``, after seeing that they do the same work."""
    mine, theirs = by_clgym(scenario(images, TASKS, QUESTIONS)), by_avalanche(images)
    assert work_of(name, mine) == work_of(name, theirs)
    return {
        "clgym": lambda: mine(model_of(name)),
        "again": lambda: mine(model_of(name)),
        "avalanche": lambda: theirs(model_of(name)),
    }
