"""Finds agents and scenarios: one file, one family; ids are read without importing anything.

A class in ``agents/codyra.py`` whose body says ``spec = AgentSpec(id="codyra-v0", ...)`` is the agent
``codyra-v0``, and ``codyra`` means its newest version. Other packages join by the entry-point groups
``clgym.agents`` and ``clgym.scenarios``, each entry named by its id.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import gymnasium

from clgym.agent import Agent, AgentSpec, Setup
from clgym.env import ContinualEnv
from clgym.errors import NotRegisteredError, SettingError
from clgym.scenario import Scenario, ScenarioSpec
from clgym.seeds import StreamSeeds, check_seed

Room = Literal["agents", "scenarios"]
SPECS: dict[str, type[AgentSpec] | type[ScenarioSpec]] = {
    "AgentSpec": AgentSpec,
    "ScenarioSpec": ScenarioSpec,
}
# A class from its first line to its first method, or to the next statement at the margin.
_HEAD = re.compile(r"^class .*?(?=^    (?:async )?def |^    @|^(?!class )\S|^class |\Z)", re.MULTILINE | re.DOTALL)
# Settings that every class of a room has beside its own, and what they mean; by default they follow the run's seed.
SHARED: dict[Room, dict[str, str]] = {
    "scenarios": {
        "order_seed": "The order of tasks and classes and the few-shot samples are those that this seed has.",
        "data_seed": "The order of training samples and their augmentation are those that this seed has.",
    },
    "agents": {"agent_seed": "The agent draws what it draws with this seed."},
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a registered class is.

    Attributes:
        spec: Its spec.
        module: Dotted name of its module.
        name: Name of the class.
        path: Its file.
    """

    spec: Any
    module: str
    name: str
    path: Path

    def load(self) -> type[Any]:
        """Import and return the class."""
        return getattr(importlib.import_module(self.module), self.name)  # type: ignore[no-any-return]


@cache
def entries(room: Room) -> dict[str, Entry]:
    """Return everything registered in a room by id, read from the sources; nothing is imported."""
    folder = Path(__file__).parent / room
    found = [entry for path in sorted(folder.glob("*.py")) for entry in read(path, f"clgym.{room}.{path.stem}")]
    for point in _points().select(group=f"clgym.{room}"):
        found += _foreign(point)
    return {entry.spec.id: entry for entry in sorted(found, key=lambda entry: entry.spec.id)}


@cache
def _points() -> Any:
    """Return the entry points of every distribution; to read them takes as long as to read our own files."""
    return importlib.metadata.entry_points()


def read(path: Path, module: str) -> Iterator[Entry]:
    """Yield the classes of a file that state a spec, without running the file."""
    for node in _classes(path.read_text(encoding="utf-8")):
        for line in node.body:
            match line:
                case (
                    ast.Assign(targets=[ast.Name(id="spec")], value=ast.Call(func=ast.Name(id=kind)) as call)
                    | ast.AnnAssign(target=ast.Name(id="spec"), value=ast.Call(func=ast.Name(id=kind)) as call)
                ):
                    if kind in SPECS:
                        values = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
                        yield Entry(SPECS[kind](**values), module, node.name, path)


def _classes(source: str) -> list[ast.ClassDef]:
    """Return the classes of a file, up to their first method: parsing all of it would take long."""
    try:
        nodes = [node for head in _HEAD.findall(source) for node in ast.parse(head).body]
    except SyntaxError:  # a docstring that holds a method was cut in two
        nodes = ast.parse(source).body
    return [node for node in nodes if isinstance(node, ast.ClassDef)]


def _foreign(point: importlib.metadata.EntryPoint) -> list[Entry]:
    """Return what an entry point of another distribution names; a broken one is left out, with a warning."""
    module, _, name = point.value.partition(":")
    try:
        found = importlib.util.find_spec(module)
        path = Path(str(found and found.origin))
        named = [entry for entry in read(path, module) if (entry.name, entry.spec.id) == (name, point.name)]
        if not named:
            raise LookupError(f"no class {name!r} whose spec has that id in {path}")
        return named
    except Exception as error:
        of = point.dist.name if point.dist else "an unnamed distribution"
        warnings.warn(
            f"Expected the entry point {point.name!r} of {of} to lead to a class with that id in a literal spec; got "
            f"{type(error).__name__}: {error}. It is left out; tell its authors.",
            stacklevel=2,
        )
        return []


def find(room: Room, id: str) -> Entry:
    """Return what is registered under an id; without ``-vN`` the newest version.

    Raises:
        NotRegisteredError: Nothing is; the message names the nearest id.
    """
    known = entries(room)
    if id in known:
        return known[id]
    versions = [name for name in known if name.rpartition("-v")[0] == id]
    if not versions:
        raise NotRegisteredError.among(room[:-1], id, known)
    return known[max(versions, key=lambda name: int(name.rpartition("-v")[2]))]


def settings(room: Room, id: str) -> dict[str, Any]:
    """Return the settings of an agent or scenario and their defaults: those of its signature, then the shared ones."""
    parameters = inspect.signature(find(room, id).load()).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | dict.fromkeys(SHARED[room])


def choosable(room: Room, id: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return :func:`settings`, and those of the agent that it wraps by the name ``<setting>.<name>``.

    Args:
        room: Where to look.
        id: Id of an agent or scenario.
        chosen: Settings, of which one may say which agent is wrapped.

    Raises:
        NotRegisteredError: The agent to be wrapped is unknown.
    """
    own = settings(room, id)
    wraps = getattr(find(room, id).spec, "wraps", "")
    if not wraps:
        return own
    inner = settings(room, str(chosen.get(wraps, own[wraps])))
    return own | {f"{wraps}.{name}": default for name, default in inner.items() if name not in SHARED[room]}


def check_names(room: Room, id: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return :func:`choosable`.

    Raises:
        NotRegisteredError: The agent to be wrapped is unknown.
        SettingError: A setting is unknown; the message names the nearest.
    """
    known = choosable(room, id, chosen)
    if unknown := sorted(set(chosen) - set(known)):
        raise SettingError(str(NotRegisteredError.among(f"setting of {id}", unknown[0], known)))
    return known


def build(scenario: str, render_mode: str | None = None, **chosen: Any) -> ContinualEnv:
    """Build the bare environment of a scenario; the entry point that Gymnasium calls."""
    seeds = StreamSeeds(**{name: chosen.pop(name, None) for name in SHARED["scenarios"]})
    entry = find("scenarios", scenario)
    check_names("scenarios", entry.spec.id, chosen)
    return ContinualEnv(entry.load()(**chosen), render_mode, seeds)


def make(id: str, **chosen: Any) -> gymnasium.Env[Any, Any]:
    """Build the environment of a scenario, as ``gymnasium.make("clgym/<id>")`` does.

    Args:
        id: Scenario id, such as ``"CLIP-MTIL-v0"``.
        **chosen: The scenario's settings and Gymnasium's own (``render_mode``, ``disable_env_checker``).

    Raises:
        NotRegisteredError: No scenario has that id.
        SettingError: A setting is unknown or out of range.
    """
    return gymnasium.make(f"clgym/{find('scenarios', id).spec.id}", **chosen)


def make_agent(
    id: str,
    env: gymnasium.Env[Any, Any],
    seed: int = 0,
    *,
    device: str = "auto",
    precision: str = "fp32",
    **chosen: Any,
) -> Agent:
    """Build an agent for an environment.

    Args:
        id: Agent id, such as ``"codyra"``.
        env: Environment it will act in; it need not have been reset.
        seed: Fixes the agent's own randomness.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: ``"fp32"``, or ``"bf16"`` for mixed precision.
        **chosen: The agent's settings.

    Raises:
        NotRegisteredError: No agent has that id.
        SettingError: A setting is unknown or out of range, or the agent does not take the scenario's inputs or
            cannot do with its backbone.
    """
    find("agents", id)
    scenario: Scenario = env.unwrapped.scenario  # type: ignore[attr-defined]
    fixed = chosen.pop("agent_seed", None)
    check_seed("agent_seed", fixed)
    own = seed if fixed is None else fixed
    setup = Setup(scenario.spec.modality, scenario.shape, scenario.backbone, own, device, precision)
    return build_agent(id, setup, chosen)


def build_agent(id: str, setup: Setup, chosen: Mapping[str, Any]) -> Agent:
    """Build an agent from what is known of a stream.

    Args:
        id: Agent id.
        setup: What is known of the stream.
        chosen: The agent's settings, and by ``<setting>.<name>`` those of the agent that it wraps.

    Raises:
        NotRegisteredError: No agent has that id.
        SettingError: A setting is unknown or out of range, or the agent does not take the stream's inputs or
            cannot do with its backbone.
    """
    entry = find("agents", id)
    if setup.modality not in entry.spec.modalities:
        raise SettingError(
            f"Expected an agent for {setup.modality} inputs; got {id!r}, which takes "
            f"{' and '.join(entry.spec.modalities)}. Choose another agent (clgym list)."
        )
    if entry.spec.needs_text and not setup.reads_text:
        raise SettingError(
            f"Expected a backbone that reads texts for {id!r}; got {setup.backbone!r}, which has no text encoder. "
            "Choose another agent (clgym list), or a scenario on CLIP."
        )
    if entry.spec.needs_head and setup.reads_text:
        raise SettingError(
            f"Expected a backbone without a text encoder for {id!r}; got {setup.backbone!r}, where classes are texts "
            "and not rows of a head. Choose another agent (clgym list), or a scenario on a vision transformer."
        )
    check_names("agents", entry.spec.id, chosen)
    prefix = f"{entry.spec.wraps}." if entry.spec.wraps else None
    inner = {name: value for name, value in chosen.items() if prefix and name.startswith(prefix)}
    own = {name: value for name, value in chosen.items() if name not in inner}
    bound = wrapping(setup, {name.removeprefix(str(prefix)): value for name, value in inner.items()})
    agent: Agent = entry.load()(bound, **own)
    return agent


def wrapping(setup: Setup, inner: Mapping[str, Any]) -> Setup:
    """Return a setup from which an agent can build the one that it wraps, with these settings of that."""
    return replace(setup, build=lambda id: build_agent(id, setup, inner))


def register_scenarios() -> None:
    """Enter every scenario in Gymnasium's registry as ``clgym/<id>``."""
    for id in entries("scenarios"):
        gymnasium.register(
            id=f"clgym/{id}",
            entry_point="clgym.registry:build",
            kwargs={"scenario": id},
            disable_env_checker=True,
        )
