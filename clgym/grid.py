"""The cells of a grid: every scenario with every agent, seed and choice of settings, each once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium

from clgym.errors import ClgymError, NotRegisteredError, SettingError
from clgym.leaderboard.table import named
from clgym.record import RunRecord
from clgym.registry import Room, check_names, choosable, entries, find, make, make_agent
from clgym.runner import folder_of
from clgym.settings import alternatives, differing, parsed

Axes = Mapping[str, Mapping[str, Sequence[Any]]]  # id to setting to its values


@dataclass(frozen=True, slots=True)
class Cell:
    """One run to be.

    Attributes:
        scenario: Scenario id.
        agent: Agent id.
        seed: Its seed.
        scenario_settings: Settings of the scenario that differ from its defaults.
        agent_settings: Settings of the agent that differ from its defaults.
        path: Where the run will be, below the folder of all runs.
    """

    scenario: str
    agent: str
    seed: int
    scenario_settings: Mapping[str, Any]
    agent_settings: Mapping[str, Any]
    path: Path

    @property
    def group(self) -> Path:
        """What cells share that differ in nothing but the seed."""
        return self.path.parent

    @property
    def stage(self) -> str:
        """The scenario and its settings."""
        return named(self.scenario, self.scenario_settings)

    @property
    def player(self) -> str:
        """The agent and its settings."""
        return named(self.agent, self.agent_settings)

    def __str__(self) -> str:
        """Say which run it is."""
        return f"{self.stage} · {self.player} · seed {self.seed}"


def cell(
    scenario: str,
    agent: str,
    seed: int = 0,
    *,
    scenario_settings: Mapping[str, Any] | None = None,
    agent_settings: Mapping[str, Any] | None = None,
) -> Cell:
    """Return one cell.

    Raises:
        NotRegisteredError: An id is unknown.
        SettingError: A setting is unknown or of another type than its default, or the seed is negative.
    """
    if seed < 0:
        raise SettingError(f"Expected a seed of 0 or more; got {seed}. Choose another.")
    scenario, agent = find("scenarios", scenario).spec.id, find("agents", agent).spec.id
    stage = _changes("scenarios", scenario, scenario_settings or {})
    player = _changes("agents", agent, agent_settings or {})
    said = RunRecord(
        clgym="",
        scenario=scenario,
        scenario_settings=differing("scenarios", scenario, stage),
        source="",
        backbone="",
        agent=agent,
        agent_settings=differing("agents", agent, player),
        seed=seed,
    )
    return Cell(scenario, agent, seed, stage, player, folder_of(said))


def _changes(room: Room, id: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from the defaults, in the defaults' types."""
    known = check_names(room, id, chosen)
    typed = {name: parsed(name, json.dumps(v), known[name]) for name, v in differing(room, id, chosen).items()}
    return {name: typed[name] for name in differing(room, id, typed)}


def grid(
    scenarios: str | Sequence[str],
    agents: str | Sequence[str],
    seeds: Iterable[int] = (0,),
    *,
    scenario_settings: Axes | None = None,
    agent_settings: Axes | None = None,
) -> list[Cell]:
    """Return the cells of a grid, each once, in the order they are played.

    >>> cells = grid("CLIP-MTIL", ["zero_shot", "replay"], range(2), agent_settings={"replay": {"size": [50, 100]}})
    >>> len(cells), str(cells[-1])
    (6, 'CLIP-MTIL-v0 · replay-v0, size=100 · seed 1')

    Args:
        scenarios: Scenario ids, or one.
        agents: Agent ids, or one; ``"all"`` takes every agent for the modality of the scenario.
        seeds: Seeds.
        scenario_settings: For each scenario id the values that its settings take.
        agent_settings: For each agent id the values that its settings take.

    Raises:
        NotRegisteredError: An id is unknown.
        SettingError: A setting is unknown or of another type than its default, a seed is negative, or there
            are settings for what is not in the grid.
    """
    stages = ids("scenarios", [scenarios] if isinstance(scenarios, str) else scenarios)
    players = {stage: playing(stage, agents) for stage in stages}
    stage_axes = _by_id("scenarios", scenario_settings or {}, stages)
    player_axes = _by_id("agents", agent_settings or {}, [id for every in players.values() for id in every])
    seeds = list(seeds)
    cells: dict[Path, Cell] = {}
    for stage in stages:
        for stage_choice, player in product(choices(stage_axes.get(stage, {})), players[stage]):
            for player_choice, seed in product(choices(player_axes.get(player, {})), seeds):
                one = cell(stage, player, seed, scenario_settings=stage_choice, agent_settings=player_choice)
                cells.setdefault(one.path, one)
    return list(cells.values())


def ids(room: Room, names: Iterable[str]) -> list[str]:
    """Return the full ids of some names, each once.

    Raises:
        NotRegisteredError: A name is unknown.
    """
    return list(dict.fromkeys(find(room, name).spec.id for name in names))


def playing(scenario: str, agents: str | Sequence[str]) -> list[str]:
    """Return the ids of the agents that are to play a scenario; ``"all"`` are those for its modality."""
    if agents == "all":
        modality = find("scenarios", scenario).spec.modality
        return [id for id, entry in entries("agents").items() if modality in entry.spec.modalities]
    return ids("agents", [agents] if isinstance(agents, str) else agents)


def choices(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield every choice of one value per setting, the last setting moving fastest.

    >>> list(choices({"r": [8, 16], "lr": [0.1]}))
    [{'r': 8, 'lr': 0.1}, {'r': 16, 'lr': 0.1}]
    """
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _by_id(room: Room, axes: Axes, played: Sequence[str]) -> dict[str, dict[str, Sequence[Any]]]:
    """Return axes by full id."""
    out: dict[str, dict[str, Sequence[Any]]] = {}
    for name, values in axes.items():
        (id,) = ids(room, [name])
        if id not in played:
            raise SettingError(
                f"Expected settings of {room} in the grid; got some of {id}. "
                f"Leave them out, or add it: the grid has {', '.join(dict.fromkeys(played))}."
            )
        out.setdefault(id, {}).update(values)
    return out


def axes(
    room: Room, played: Sequence[str], texts: Sequence[str], *, some: bool = False
) -> dict[str, dict[str, list[Any]]]:
    """Return the values that ``KEY=V1,V2`` texts give to everybody, and ``ID:KEY=V1,V2`` texts to one.

    Values are parted as :func:`clgym.settings.alternatives` says. What is said of one goes before what is said
    of everybody.

    Args:
        room: Whose settings these are.
        played: Full ids of all who are in the grid.
        texts: The texts.
        some: Whether ``KEY=V1,V2`` is for those who have that setting, if anybody; otherwise all must have it.

    Raises:
        NotRegisteredError: An id before a colon is unknown.
        SettingError: A text is not of that form, a setting is unknown, of another type than its default or
            given twice, or the id before the colon is not in the grid.
    """
    general: dict[str, dict[str, list[Any]]] = {id: {} for id in played}
    special: dict[str, dict[str, list[Any]]] = {id: {} for id in played}
    known = {id: choosable(room, id, {}) for id in played}
    # Which agent is wrapped says what can be chosen of it, and so comes first.
    for text in sorted(texts, key=lambda text: "." in text.partition("=")[0]):
        head, equals, values = text.partition("=")
        name, colon, key = head.rpartition(":")
        if not equals or not key:
            raise SettingError(f"Expected KEY=VALUE, or ID:KEY=VALUE; got {text!r}. Write for example lr=1e-3,2e-3.")
        of = ids(room, [name]) if colon else list(played)
        if missing := [id for id in of if id not in played]:
            raise SettingError(
                f"Expected one of {', '.join(played)} before the colon; got {text!r}. "
                f"Add {missing[0]} to the sweep, or leave its settings out."
            )
        having = [id for id in of if key in known[id]]
        for id in having if some and having and not colon else of:
            if key not in known[id]:
                hint = f" Write ID:{key}=… for those that have it." if len(of) > 1 else ""
                raise SettingError(f"{NotRegisteredError.among(f'setting of {id}', key, known[id])}{hint}")
            mine = (special if colon else general)[id]
            if key in mine:
                raise SettingError(f"Expected {head} once; got it again as {text!r}. Write {head}=V1,V2.")
            mine[key] = [parsed(key, part, known[id][key]) for part in alternatives(values)]
            known[id] = choosable(room, id, {name: each[0] for name, each in {**general[id], **special[id]}.items()})
    return {id: {**general[id], **special[id]} for id in played}


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


@dataclass(frozen=True, slots=True)
class Skip:
    """An agent that a scenario is not played with.

    Attributes:
        scenario: The scenario and its settings.
        agent: The agent and its settings.
        reason: What its making was refused with.
    """

    scenario: str
    agent: str
    reason: str


def fitting(cells: Sequence[Cell], *, skip: bool, precision: str = "fp32") -> tuple[list[Cell], list[Skip]]:
    """Make every agent once, on the CPU, and return the cells whose agent can be made and what was refused.

    Args:
        cells: Cells of a grid.
        skip: Whether an agent that refuses a scenario at its defaults is left out; otherwise that is raised.
        precision: As in :func:`clgym.run`.

    Raises:
        ClgymError: A scenario cannot be made, or an agent with its settings on it.
    """
    refused: dict[Path, Skip] = {}
    stages: dict[str, dict[Path, Cell]] = {}
    for one in cells:
        stages.setdefault(one.stage, {}).setdefault(one.group, one)
    for groups in stages.values():
        first = next(iter(groups.values()))
        env = make(first.scenario, disable_env_checker=True, **first.scenario_settings)
        try:
            for group, one in groups.items():
                if reason := _refusal(one, env, skip, precision):
                    refused[group] = Skip(one.stage, one.player, reason)
        finally:
            env.close()
    return [one for one in cells if one.group not in refused], list(refused.values())


def _refusal(one: Cell, env: gymnasium.Env[Any, Any], skip: bool, precision: str) -> str:
    """Return why an agent cannot be made even at its defaults, or ``""``; raise where its settings are at fault."""
    try:
        make_agent(one.agent, env, device="cpu", precision=precision, **one.agent_settings)
    except ClgymError as error:
        if not skip or (one.agent_settings and not _refusal(replace(one, agent_settings={}), env, skip, precision)):
            raise
        return str(error)
    return ""
