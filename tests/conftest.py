"""A stream small enough to count by hand, and the settings every test runs under."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from clgym.env import ContinualEnv
from clgym.events import Inputs, IntArray
from clgym.scenario import Scenario, ScenarioSpec, Task, Teaching


@dataclass(frozen=True)
class Pixels:
    """Images whose first pixel is their index, so that a test can see which one it was shown."""

    targets: IntArray
    shade: int
    decodes: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, index: IntArray, rng: np.random.Generator | None = None) -> Inputs:
        images = np.full((len(index), 2, 2, 3), self.shade, np.uint8)
        images[:, 0, 0, 0] = index
        return images

    def fingerprint(self) -> str:
        return f"{self.shade:064x}"


class Toy(Scenario):
    """Tasks of two, three, ... classes on two-pixel images; ``shared``: tasks name their classes alike."""

    spec = ScenarioSpec(
        id="Toy-v0",
        title="Toy",
        paper="none",
        kind="task-incremental",
        modality="image",
        description="For tests.",
        metrics=("average_accuracy",),
    )

    def __init__(
        self,
        *,
        tasks: int = 2,
        train: int = 5,
        test: int = 4,
        slow: bool = False,
        shared: bool = False,
        **teaching: Any,
    ) -> None:
        self.n_tasks, self.train, self.test, self.slow, self.shared = tasks, train, test, slow, shared
        self.shape, self.classes = (2, 2, 3), tasks + 1
        self.source, self.backbone = "embedded", "none"
        self.teaching = Teaching(**{"batch_size": 2, "query_size": 3, **teaching})

    def tasks(self, rng: np.random.Generator) -> Sequence[Task]:
        made = []
        for t in range(self.n_tasks):
            classes = tuple(f"t{0 if self.shared else t}c{c}" for c in range(t + 2))
            data = [Pixels(np.arange(n) % len(classes), 10 * t, self.slow) for n in (self.train, self.test)]
            prompts = tuple((f"{c} in task {t}",) if self.shared else (c,) for c in classes)
            made.append(Task(f"task {t}", "", classes, prompts, data[0], data[1]))
        return made


@pytest.fixture
def toy() -> Callable[..., ContinualEnv]:
    """Return a maker of toy environments."""
    return lambda render_mode=None, seeds=None, **settings: ContinualEnv(Toy(**settings), render_mode, seeds)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Keep torch to one thread, here and in processes that tests start: tests run side by side."""
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Leave the user's downloads and caches alone."""
    os.environ["CLGYM_DATA"] = str(tmp_path_factory.mktemp("data"))
