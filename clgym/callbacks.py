"""What may watch a run: the progress bar, TensorBoard, Weights & Biases, or anything with these methods."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clgym.env import ContinualEnv
from clgym.errors import DependencyError, SettingError
from clgym.events import Event, Query, TaskStart, Train
from clgym.record import RunRecord


class Callback:
    """Base of callbacks; every method does nothing unless overridden.

    A callback sees events, rewards and reports. It is the runner's guest, never the agent's.
    """

    def on_start(self, env: ContinualEnv, record: RunRecord, folder: Path | None) -> None:
        """Be told of a run that starts or resumes; a run without a folder writes nothing."""

    def on_event(self, env: ContinualEnv, event: Event, reward: float) -> None:
        """Be shown an event after the agent acted on it, with the reward of that act."""

    def on_point(self, env: ContinualEnv, after: int) -> None:
        """Be told that all tasks have been asked after ``after`` tasks."""

    def on_end(self, env: ContinualEnv, record: RunRecord) -> None:
        """Be told that the run is finished."""


class Story:
    """What a run is doing, in a few words, and the accuracy of its current round of questions."""

    def __init__(self) -> None:
        """Begin before the first task."""
        self.what = ""
        self._task = "a task"  # a run that goes on inside one has not seen its start
        self._right = self._asked = 0.0

    @property
    def accuracy(self) -> float | None:
        """Accuracy so far in the current or last round of questions, in [0, 1]; ``None`` while learning."""
        return self._right / self._asked if self._asked else None

    def follow(self, env: ContinualEnv, event: Event, reward: float) -> None:
        """Take in an event and its reward."""
        match event:
            case TaskStart():
                self._task = event.name or "a task"
            case Train():
                self._right = self._asked = 0.0
                self.what = f"learning {self._task}"
            case Query():
                self._right += reward * len(event.inputs)
                self._asked += len(event.inputs)
                self.what = "asking all" if event.task is None else f"asking {env.task_names[event.task]}"


class ProgressBar(Callback):
    """One line with task, event, running accuracy and time left, drawn within ``with ProgressBar() as bar:``.

    Args:
        console: Where to draw; ``None`` is standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Draw nothing yet."""
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            # Task names are data, not markup.
            TextColumn("{task.fields[what]:<28}", markup=False),
            TextColumn("acc {task.fields[accuracy]}", markup=False),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
            refresh_per_second=5,
            transient=True,
        )

    def __enter__(self) -> Self:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the line."""
        self._progress.stop()

    def on_start(self, env: ContinualEnv, record: RunRecord, folder: Path | None) -> None:
        """Open the bar."""
        del folder
        name = f"{record.agent} · seed {record.seed}"
        self._bar = self._progress.add_task(name, total=env.length, completed=env.position, what="", accuracy="  -  ")
        self._story = Story()

    def on_event(self, env: ContinualEnv, event: Event, reward: float) -> None:
        """Move the bar; the accuracy is that of the current round of questions."""
        self._story.follow(env, event, reward)
        fields: dict[str, Any] = {"what": self._story.what}
        if (accuracy := self._story.accuracy) is not None:
            fields["accuracy"] = f"{100 * accuracy:4.1f} %"
        self._progress.update(self._bar, completed=env.position, **fields)

    def on_end(self, env: ContinualEnv, record: RunRecord) -> None:
        """Close the bar."""
        self._progress.update(self._bar, completed=env.length, what="", visible=False)


class TensorBoard(Callback):
    """Writes accuracy per task and the metrics as TensorBoard scalars.

    Args:
        folder: Where to write; ``None`` is ``tensorboard/`` in the run's folder.

    Raises:
        DependencyError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Find the package."""
        need("tensorboard", "tensorboard")
        self._folder = folder

    def on_start(self, env: ContinualEnv, record: RunRecord, folder: Path | None) -> None:
        """Open the event file."""
        where = self._folder or (folder and folder / "tensorboard")
        if where is None:
            raise SettingError(
                "Expected a folder for TensorBoard; got a run that writes none. Pass TensorBoard(folder) or out=."
            )
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(where))

    def on_point(self, env: ContinualEnv, after: int) -> None:
        """Write a row of the matrix."""
        for name, value in named_row(env, after).items():
            self._writer.add_scalar(name, value, after)
        self._writer.flush()

    def on_end(self, env: ContinualEnv, record: RunRecord) -> None:
        """Write the metrics and close the file."""
        for name, value in record.metrics.items():
            if value is not None:
                self._writer.add_scalar(f"metrics/{name}", value, len(record.tasks))
        self._writer.close()


class WeightsAndBiases(Callback):
    """Logs accuracy per task and the metrics to Weights & Biases; ``WANDB_MODE=offline`` needs no account.

    Args:
        project: Project name.

    Raises:
        DependencyError: wandb is not installed.
    """

    def __init__(self, project: str = "clgym") -> None:
        """Find the package."""
        self._wandb = need("wandb", "wandb")
        self._project = project

    def on_start(self, env: ContinualEnv, record: RunRecord, folder: Path | None) -> None:
        """Open a run whose config is the record's identity."""
        config = record.model_dump(
            include={"scenario", "scenario_settings", "source", "agent", "agent_settings", "seed"}
        )
        name = "/".join((record.scenario, record.agent, str(record.seed)))
        where = None if folder is None else str(folder)
        # A run that resumes is a new one to W&B; the group holds its parts together.
        self._run = self._wandb.init(project=self._project, name=name, group=name, config=config, dir=where)

    def on_point(self, env: ContinualEnv, after: int) -> None:
        """Log a row of the matrix."""
        self._run.log({**named_row(env, after), "tasks learned": after})

    def on_end(self, env: ContinualEnv, record: RunRecord) -> None:
        """Write the metrics as the run's summary and close it."""
        self._run.summary.update({k: v for k, v in record.metrics.items() if v is not None})
        self._run.finish()


def named_row(env: ContinualEnv, after: int) -> dict[str, float]:
    """Return accuracy per task that was asked, and its mean, after so many tasks; ``{"accuracy/<task>": value}``."""
    row = env.report().R[after]
    asked = {f"accuracy/{name}": float(a) for name, a in zip(env.task_names, row, strict=True) if not np.isnan(a)}
    return asked | {"accuracy": float(np.mean(list(asked.values())))}


def need(module: str, extra: str) -> Any:
    """Import an optional package.

    Raises:
        DependencyError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(
            f"Expected the package {module!r}; got none. Install it with pip install 'clgym-suite[{extra}]'."
        ) from error
