"""Plays the cells of a grid, each in a process of its own, here or on Ray; what is finished is never played again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clgym import checkpoint
from clgym.errors import RecordError, SettingError
from clgym.grid import Cell, cell, grid
from clgym.record import RunRecord
from clgym.sweep_here import cores, play_here, slots_of
from clgym.worker import Ending, Order, Progress, log_of

__all__ = ["Cell", "Outcome", "Watch", "cell", "grid", "sweep"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a cell.

    Attributes:
        cell: Which one.
        folder: Its run.
        record: Its record if it is finished, otherwise ``None``.
        kind: Class of the error it failed with, or ``""``.
        error: What it says, or ``""``.
        log: Its log, if it failed.
    """

    cell: Cell
    folder: Path
    record: RunRecord | None = None
    kind: str = ""
    error: str = ""
    log: Path | None = None


class Watch:
    """Base of what watches a sweep; every method does nothing unless overridden."""

    def on_plan(self, finished: Sequence[Cell], waiting: Sequence[Cell]) -> None:
        """Be told what is finished already, and what is to be played."""

    def on_progress(self, cell: Cell, progress: Progress) -> None:
        """Be told how far a run is, several times a second."""

    def on_outcome(self, outcome: Outcome) -> None:
        """Be told that a run has finished or failed."""

    def on_stop(self) -> None:
        """Be told that the sweep was interrupted and waits for the events in hand."""


def finished(one: Cell, out: Path) -> RunRecord | None:
    """Return the record of a finished cell, or ``None``: it is not there, unfinished or damaged."""
    try:
        record = RunRecord.load(out / one.path)
    except RecordError:
        return None  # if it is damaged, its own process says so
    return record if record.status == "finished" else None


def sweep(
    cells: Sequence[Cell],
    out: str | Path = "runs",
    *,
    jobs: int = 0,
    threads: int = 0,
    device: str = "auto",
    precision: str = "fp32",
    checkpoint_seconds: float = 60.0,
    ray: str | None = None,
    gpus: float | None = None,
    watch: Watch | None = None,
) -> list[Outcome]:
    """Play every cell that is not finished, and return what came of each, in order.

    A cell that fails does not stop the others. One that was interrupted continues from its checkpoint. Ctrl-C
    lets every run finish the event in hand and write a checkpoint; a second one does not wait.

    Args:
        cells: Cells, as :func:`grid` returns them.
        out: Folder under which runs are written; on Ray one that all nodes share.
        jobs: Runs at a time on this machine; 0 is one per core, or one per GPU where runs use them. Ray has its
            own mind.
        threads: Threads of each run; 0 is cores by ``jobs``, at least 1; on Ray it is 1.
        device: As in :func:`clgym.run`. Where there are several GPUs, runs are dealt out to them.
        precision: As in :func:`clgym.run`.
        checkpoint_seconds: As in :func:`clgym.run`.
        ray: Address of a Ray cluster, ``""`` for the running one or else a new local one; ``None`` is not to
            use Ray. Each run is a task that claims ``threads`` CPUs and is tried again, from its checkpoint,
            when its worker or node dies.
        gpus: GPUs that each run claims on Ray, also a fraction; ``None`` is 1, or 0 on the device ``"cpu"``
            or where the cluster has none.
        watch: What is told of progress.

    Raises:
        SettingError: A number is out of range, the device is not there, or unfinished runs began with another
            number of threads.
        DependencyError: Ray is wanted and not installed.
        KeyboardInterrupt: Ctrl-C, once all runs have stopped.
    """
    for name, value in {"jobs": jobs, "threads": threads, "gpus": gpus or 0}.items():
        if value < 0:
            raise SettingError(f"Expected {name} of 0 or more; got {value}. Leave it out for the default.")
    watch = watch or Watch()
    out = Path(out)
    done = {one.path: Outcome(one, out / one.path, record) for one in cells if (record := finished(one, out))}
    waiting = {str(one.path): one for one in cells if one.path not in done}
    watch.on_plan([outcome.cell for outcome in done.values()], list(waiting.values()))

    def tell(order: Order, news: Progress | Ending) -> None:
        one = waiting[order.path]
        if isinstance(news, Progress):
            watch.on_progress(one, news)
        else:
            done[one.path] = _outcome(one, out, news)
            watch.on_outcome(done[one.path])

    if waiting:
        slots = slots_of(jobs, device) if ray is None else []
        threads = threads or max(1, cores() // len(slots) if slots else 1)
        _check_threads(list(waiting.values()), out, threads)
        order = Order(str(out.absolute()), device, precision, checkpoint_seconds, threads, str(Path.cwd()))
        orders = [_order(order, one) for one in waiting.values()]
        if ray is None:
            play_here(orders, slots, tell, watch.on_stop)
        else:
            from clgym.sweep_ray import play_on_ray

            play_on_ray(orders, ray, gpus, tell, watch.on_stop)
    return [done[one.path] for one in cells]


def _check_threads(waiting: Sequence[Cell], out: Path, threads: int) -> None:
    """Raise if a run that waits to be continued began with another number of threads, which it would refuse."""
    for one in waiting:
        folder = out / one.path
        try:
            began = RunRecord.load(folder).hardware["threads"] if checkpoint.exists(folder / "checkpoint") else threads
        except RecordError:
            continue  # it is played, and says what is wrong
        if began != threads:
            raise SettingError(
                f"Expected {began} threads, as the unfinished run in {folder} began with; got {threads}. "
                f"Add --threads {began} (threads={began}), or delete that folder to start it again."
            )


def _order(order: Order, one: Cell) -> Order:
    """Return an order for a cell."""
    return replace(
        order,
        scenario=one.scenario,
        agent=one.agent,
        seed=one.seed,
        scenario_settings=[f"{name}={json.dumps(value)}" for name, value in one.scenario_settings.items()],
        agent_settings=[f"{name}={json.dumps(value)}" for name, value in one.agent_settings.items()],
        path=str(one.path),
    )


def _outcome(one: Cell, out: Path, ending: Ending) -> Outcome:
    """Return what came of a cell whose process has ended."""
    folder = out / one.path
    if ending.state != "finished":
        return Outcome(one, folder, None, ending.kind, ending.error, log_of(folder))
    if record := finished(one, out):
        return Outcome(one, folder, record)
    error = f"Expected the finished run in {folder}; got none. Choose a folder that all nodes share."
    return Outcome(one, folder, None, "RecordError", error, log_of(folder))
