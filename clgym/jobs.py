"""Many runs from one command: seeds and settings from text, and a look ahead before the first one starts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clgym.callbacks import Callback, ProgressBar, TensorBoard, WeightsAndBiases
from clgym.errors import SettingError
from clgym.record import RunRecord
from clgym.registry import Room, find, settings
from clgym.runner import folder_of, run
from clgym.settings import chosen


@dataclass(frozen=True, slots=True)
class Job:
    """One run to be.

    Attributes:
        scenario: Scenario id.
        agent: Agent id.
        seed: Its seed.
        scenario_settings: Chosen settings of the scenario.
        agent_settings: Chosen settings of the agent.
        folder: Where the run will be.
    """

    scenario: str
    agent: str
    seed: int
    scenario_settings: Mapping[str, Any]
    agent_settings: Mapping[str, Any]
    folder: Path


def seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of a list of numbers and ranges, each once.

    >>> seeds("0-2,7")
    (0, 1, 2, 7)

    Raises:
        SettingError: A part is neither a number nor a range.
    """
    out: dict[int, None] = {}
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, -1)
        if first > last:
            raise SettingError(
                f"Expected seeds as numbers and rising ranges; got {part!r} in {text!r}. Write 0-2 or 0,1,5."
            )
        out.update(dict.fromkeys(range(first, last + 1)))
    return tuple(out)


def planned(
    scenario: str,
    agents: Sequence[str],
    over: Sequence[int],
    out: Path,
    *,
    scenario_settings: Sequence[str],
    agent_settings: Sequence[str],
) -> list[Job]:
    """Return the runs in the order they are played.

    Args:
        scenario: Scenario id.
        agents: Agent ids.
        over: Seeds.
        out: Folder under which runs are written.
        scenario_settings: ``KEY=VALUE`` texts.
        agent_settings: ``KEY=VALUE`` texts, for every agent.

    Raises:
        NotRegisteredError: An id is unknown.
        SettingError: A setting is unknown or of the wrong type.
    """
    played = find("scenarios", scenario).spec.id
    of_scenario = chosen("scenarios", played, scenario_settings)
    jobs = []
    for agent in dict.fromkeys(find("agents", name).spec.id for name in agents):
        of_agent = chosen("agents", agent, agent_settings)
        for seed in over:
            named = RunRecord(
                clgym="",
                scenario=played,
                scenario_settings=_changed("scenarios", played, of_scenario),
                source="",
                backbone="",
                agent=agent,
                agent_settings=_changed("agents", agent, of_agent),
                seed=seed,
            )
            jobs.append(Job(played, agent, seed, of_scenario, of_agent, out / folder_of(named)))
    return jobs


def _changed(room: Room, id: str, values: Mapping[str, Any]) -> dict[str, Any]:
    defaults = settings(room, id)
    return {name: value for name, value in values.items() if defaults[name] != value}


def unclaimed(jobs: Sequence[Job]) -> None:
    """Do nothing if no run is there yet.

    Raises:
        SettingError: One is; the message says how to continue or replace it.
    """
    taken = [job.folder for job in jobs if (job.folder / "run.json").exists()]
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
    job: Job,
    out: Path,
    *,
    resume: bool,
    overwrite: bool,
    device: str,
    precision: str,
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
        callbacks=callbacks,
        **job.agent_settings,
    )
