"""One job in Avalanche and in clgym, for C7 of ``kernels_cpu.py``: five tasks, SGD, all tasks asked after each.

Five tasks of 2,000 random uint8 images of 32 by 32 with two classes each, one pass in batches of 64, 500 questions a
task, after every task on all five. Both sides train the same model with plain SGD and normalise alike; Avalanche runs
its ``Naive`` strategy with an evaluation plugin of accuracies and no logger. Needs ``avalanche-lib`` 0.6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clgym.env import ContinualEnv
from clgym.events import Query, Train

TASKS, SAMPLES, QUESTIONS, BATCH = 5, 2000, 500, 64


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(3072, 128), nn.ReLU(), nn.Linear(128, 2 * TASKS))
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 64, 2 * TASKS)),
    )


def floats(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float().div_(255).sub_(0.5)


def by_clgym(name: str, scenario: Any) -> Callable[[], nn.Module]:
    def run() -> nn.Module:
        env, model = ContinualEnv(scenario), model_of(name)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        event, _ = env.reset(seed=0)
        first, done, answer = 0, False, None
        while not done:
            answer = None
            if isinstance(event, Train):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(
                    model(floats(torch.from_numpy(event.inputs))), torch.from_numpy(event.targets) + first
                )
                torch.autograd.backward(loss)
                optimizer.step()
            elif isinstance(event, Query):
                with torch.no_grad():
                    logits = model(floats(torch.from_numpy(event.inputs)))[:, : len(event.prompts)]
                answer = logits.log_softmax(-1).numpy()
            event, _, done, _, _ = env.step(answer)
        env.report()
        return model

    return run


def by_avalanche(name: str, images: np.ndarray) -> Callable[[], nn.Module]:
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    class Share(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __init__(self, part: Tensor, first: int) -> None:
            self.part, self.first = part, first
            self.targets = [first + i % 2 for i in range(len(part))]

        def __len__(self) -> int:
            return len(self.part)

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return floats(self.part[i][None])[0], self.targets[i]

    shares = [torch.from_numpy(part) for part in np.array_split(images, TASKS)]
    train = [as_classification_dataset(Share(part, 2 * t)) for t, part in enumerate(shares)]
    test = [as_classification_dataset(Share(part[:QUESTIONS], 2 * t)) for t, part in enumerate(shares)]
    benchmark = benchmark_from_datasets(train=train, test=test)

    def run() -> nn.Module:
        model = model_of(name)
        plugin = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=BATCH,
            eval_mb_size=BATCH,
            train_epochs=1,
            evaluator=plugin,
        )
        for experience in benchmark.train_stream:
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
        return model

    return run


def variants(name: str, scenario: Callable[..., Any]) -> Mapping[str, Callable[[], object]]:
    """Return the runs to be timed, for the model ``"mlp"`` or ``"cnn"``."""
    images = np.random.default_rng(0).integers(0, 256, (TASKS * SAMPLES, 32, 32, 3), np.uint8)
    mine = by_clgym(name, scenario(images, TASKS, QUESTIONS))
    return {"clgym": mine, "again": mine, "avalanche": by_avalanche(name, images)}
