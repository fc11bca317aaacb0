"""Runs one after another from one command: a look ahead before the first one starts, and who watches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from clgym.callbacks import Callback, ProgressBar, TensorBoard, WeightsAndBiases
from clgym.errors import SettingError
from clgym.grid import Cell, cell, ids
from clgym.record import RunRecord
from clgym.runner import run
from clgym.settings import chosen


def planned(
    scenario: str,
    agents: Sequence[str],
    over: Sequence[int],
    *,
    scenario_settings: Sequence[str],
    agent_settings: Sequence[str],
) -> list[Cell]:
    """Return the runs in the order they are played.

    Args:
        scenario: Scenario id.
        agents: Agent ids.
        over: Seeds.
        scenario_settings: ``KEY=VALUE`` texts.
        agent_settings: ``KEY=VALUE`` texts, for every agent.

    Raises:
        NotRegisteredError: An id is unknown.
        SettingError: A setting is unknown or of the wrong type.
    """
    (played,) = ids("scenarios", [scenario])
    of_scenario = chosen("scenarios", played, scenario_settings)
    return [
        cell(played, agent, seed, scenario_settings=of_scenario, agent_settings=of_agent)
        for agent in ids("agents", agents)
        for of_agent in [chosen("agents", agent, agent_settings)]
        for seed in over
    ]


def unclaimed(jobs: Sequence[Cell], out: Path) -> None:
    """Do nothing if no run is there yet.

    Raises:
        SettingError: One is; the message says how to continue or replace it.
    """
    taken = [out / job.path for job in jobs if (out / job.path / "run.json").exists()]
    if taken:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise SettingError(
            f"Expected new runs; got {taken[0]}{more}, which exist already. "
            "Add --resume to continue or keep them, or --overwrite to replace them."
        )


def watchers(stack: ExitStack, *, bar: bool, tensorboard: bool, wandb: bool) -> list[Callback]:
    """Return the callbacks that were asked for; a progress bar is drawn until the stack closes.

    Raises:
        DependencyError: An optional package is not installed.
    """
    callbacks: list[Callback] = [stack.enter_context(ProgressBar())] if bar else []
    callbacks += [TensorBoard()] if tensorboard else []
    callbacks += [WeightsAndBiases()] if wandb else []
    return callbacks


def play(
    job: Cell,
    out: Path,
    *,
    resume: bool,
    overwrite: bool,
    device: str,
    precision: str,
    whitebox: bool,
    callbacks: Sequence[Callback],
) -> RunRecord:
    """Play a run to its end and return its record; see :func:`clgym.runner.run`."""
    return run(
        job.scenario,
        job.agent,
        job.seed,
        scenario_settings=dict(job.scenario_settings),
        out=out,
        resume=resume,
        overwrite=overwrite,
        device=device,
        precision=precision,
        whitebox=whitebox,
        callbacks=callbacks,
        **job.agent_settings,
    )
