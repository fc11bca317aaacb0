"""A stream small enough to count by hand, the command line in this process, and the settings of every test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from clgym.__main__ import app
from clgym.env import ContinualEnv
from clgym.events import Inputs, IntArray
from clgym.scenario import Scenario, ScenarioSpec, Task, Teaching


def cli(*args: object, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_code, (result.stdout, result.stderr)
    return result


def loaded(*args: str | Path, exit_code: int = 0) -> Any:
    return json.loads(cli(*args, "--json", exit_code=exit_code).stdout)


def said(result: Result) -> str:
    """What stands on standard error, without line breaks."""
    return " ".join(result.stderr.split())


def called_here(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    """Do what ``subprocess.run`` does with a command line of clgym, in this process."""
    assert command[:3] == [sys.executable, "-m", "clgym"]
    result = cli(*command[3:])
    return subprocess.CompletedProcess(command, result.exit_code, result.stdout)


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


@pytest.fixture(scope="session")
def four_domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of four domains of three classes, six training and four test images each, alike but for noise."""
    root, rng = tmp_path_factory.mktemp("domains"), np.random.default_rng(0)
    for domain in ("pets", "tools", "toys", "trees"):
        for c in range(3):
            colours = rng.integers(40, 215, (4, 4, 3))
            for split, count in (("train", 6), ("test", 4)):
                place = root / domain / split / f"{domain} {c}"
                place.mkdir(parents=True)
                for i in range(count):
                    pixels = (colours + rng.integers(-40, 40, colours.shape)).astype(np.uint8)
                    Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(place / f"{i}.png")
    return root


DRILL = '''
import os, signal, time
from pathlib import Path
import numpy as np
from clgym.agent import Agent, AgentSpec
from clgym.errors import SettingError

class Drill(Agent):
    """Guesses by the sum of pixels, or does as told.

    Args:
        setup: What is known of the stream.
        fail: Raise this at the end of the first task.
        die: Be killed at the end of the first task, unless this file is there already.
        say: Print this.
        lr: Factor of the sum; 0 is the first class.
        betas: Any.
    """

    spec = AgentSpec(id="drill-v0", title="Drill")

    def __init__(self, setup, *, fail="", die="", say="", lr=0.0, betas=(0.9, 0.99)):
        super().__init__(setup)
        if lr < 0:
            raise SettingError(f"Expected lr of 0 or more; got {lr}. Raise it.")
        self.fail, self.die, self.lr = fail, die, lr
        if say:
            print(say, flush=True)

    def learn(self, event):
        time.sleep(float(os.environ.get("DRILL_PAUSE", 0)))  # seconds that a batch takes

    def end_task(self, event):
        if self.fail:
            raise ValueError(self.fail)
        if self.die and not Path(self.die).exists():
            Path(self.die).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def answer(self, event):
        sums = event.inputs.reshape(len(event.inputs), -1).sum(1, dtype=np.int64)
        return int(self.lr) * sums % len(event.candidates)

class Picky(Drill):
    """Refuses every stream."""

    spec = AgentSpec(id="picky-v0", title="Picky")

    def __init__(self, setup, *, lr=0.0):
        raise SettingError("Expected images of 64 pixels; got 32. Choose another agent.")

class Reader(Drill):
    """Reads."""

    spec = AgentSpec(id="reader-v0", title="Reader", modalities=("text",))
'''
POINTS = "[clgym.agents]\ndrill-v0 = drill:Drill\npicky-v0 = drill:Picky\nreader-v0 = drill:Reader\n"


@pytest.fixture(scope="session")
def drill_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an installed distribution of agents that do as told."""
    folder = tmp_path_factory.mktemp("drill")
    about = folder / "drill-0.dist-info"
    about.mkdir()
    (folder / "drill.py").write_text(DRILL)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: drill\nVersion: 0\n")
    (about / "entry_points.txt").write_text(POINTS)
    return folder


@contextmanager
def _installed(folder: Path) -> Iterator[None]:
    """Have the distributions of a folder, here and in processes that are started."""
    from clgym import registry

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
        for cached in (registry._points, registry.entries):
            cached.cache_clear()
        yield
    for cached in (registry._points, registry.entries):
        cached.cache_clear()


@pytest.fixture(scope="module")
def drilled(drill_package: Path) -> Iterator[None]:
    """Have the agents ``drill-v0``, ``picky-v0`` and ``reader-v0`` in all tests of a file."""
    with _installed(drill_package):
        yield


@pytest.fixture
def drill(drill_package: Path) -> Iterator[None]:
    """Have the agents ``drill-v0``, ``picky-v0`` and ``reader-v0`` in one test."""
    with _installed(drill_package):
        yield


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have sweeps play in this process rather than start others; return the paths of what is played."""
    from clgym.worker import Ending, Order, Progress, play

    played: list[str] = []

    class Here:
        def __init__(self, order: Order) -> None:
            self.order = order
            played.append(order.path)

        def follow(self, tell: Callable[[Progress], None]) -> Ending:
            tell(Progress(1, 20, "asking", 0.5))
            try:
                play(self.order, [])
            except Exception as error:
                return Ending("failed", type(error).__name__, str(error))
            return Ending("finished")

        def stop(self) -> None:
            pass

        def kill(self) -> None:
            pass

    monkeypatch.setattr("clgym.sweep_here.Player", Here)
    return played
