"""The registry: ids come from sources that are not run, versions and plug-ins resolve, wrong names are told."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import clgym
from clgym import registry
from clgym.agent import Setup
from clgym.errors import NotRegisteredError, SettingError
from clgym.registry import entries, find, read, settings

ROOMS: tuple[registry.Room, ...] = ("agents", "scenarios")


@pytest.fixture
def fresh() -> Iterator[None]:
    """Read the rooms anew, before and after."""
    entries.cache_clear()
    yield
    entries.cache_clear()


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_of_a_room_registers_something(room: registry.Room) -> None:
    files = {path.stem for path in (Path(registry.__file__).parent / room).glob("*.py")}
    assert {entry.path.stem for entry in entries(room).values()} >= files
    for id, entry in entries(room).items():
        assert entry.spec.id == id
        assert entry.load().spec == entry.spec


def test_an_id_begins_with_its_file_name() -> None:
    for id, entry in entries("agents").items():
        assert id.rpartition("-v")[0].startswith(entry.path.stem)


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from clgym.registry import entries; print(len(entries('agents')), len(entries('scenarios'))); "
        "print(sorted({'torch', 'open_clip', 'transformers', 'clgym.agents.codyra', 'clgym.learner'} & {*sys.modules}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert out[0] == f"{len(entries('agents'))} {len(entries('scenarios'))}"
    assert out[1] == "[]"


def test_reading_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "loud.py"
    path.write_text(
        "raise SystemExit\n"
        "class Helper:\n    spec = 3\nclass Other:\n    spec = dict(id='other-v0')\n"
        "class Loud(Agent):\n    spec = AgentSpec(id='loud-v1', title='Loud', modalities=('image', 'text'))\n"
        "class Twice(Loud):\n    spec = AgentSpec(\n        id='loud_twice-v0',\n        title='a' 'b',\n    )\n"
    )
    found = list(read(path, "somewhere.loud"))
    assert [(e.spec.id, e.name, e.module, e.path) for e in found] == [
        ("loud-v1", "Loud", "somewhere.loud", path),
        ("loud_twice-v0", "Twice", "somewhere.loud", path),
    ]
    assert found[0].spec.modalities == ("image", "text")
    assert found[1].spec.title == "ab"


# --- Versions and plug-ins ----------------------------------------------------------------------------------


GUESSING = '''
import numpy as np
from clgym.agent import Agent, AgentSpec

class Guesser(Agent):
    """Answers 0."""

    spec = AgentSpec(id="guesser-v2", title="Guesser")

    def __init__(self, setup, *, often=1):
        super().__init__(setup)
        self.often = often

    def answer(self, event):
        return np.zeros(len(event.inputs), np.int64)

class Older(Guesser):
    spec: AgentSpec = AgentSpec(id="guesser-v1", title="Guesser")

class Newer(Guesser):
    spec = AgentSpec(id="guesser-v10", title="Guesser")
'''
KINDS = {"guesser-v2": "Guesser", "guesser-v1": "Older", "guesser-v10": "Newer"}


def plug_in(monkeypatch: pytest.MonkeyPatch, points: dict[str, str]) -> None:
    """Pretend that another distribution has these entry points in the group of agents."""

    found = [importlib.metadata.EntryPoint(id, value, "clgym.agents") for id, value in points.items()]
    monkeypatch.setattr(registry, "_points", lambda: importlib.metadata.EntryPoints(found))


@pytest.fixture
def plugged(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put three versions of an agent into a package of its own."""
    (tmp_path / "guessing.py").write_text(GUESSING)
    monkeypatch.syspath_prepend(tmp_path)
    plug_in(monkeypatch, {id: f"guessing:{kind}" for id, kind in KINDS.items()})
    yield
    sys.modules.pop("guessing", None)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("value", ["nowhere_at_all:Guesser", "json:Guesser", "clgym.agents.codyra:CoDyRA"])
def test_a_broken_plug_in_is_left_out_with_a_warning(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, {"broken-v0": value})
    with pytest.warns(UserWarning, match=r"Expected the entry point 'broken-v0' of an unnamed distribution to lead"):
        known = entries("agents")
    assert "broken-v0" not in known
    assert "codyra-v0" in known


@pytest.mark.usefixtures("plugged")
def test_plug_ins_stand_beside_our_own() -> None:
    assert {"guesser-v1", "guesser-v2", "guesser-v10", "codyra-v0"} <= set(entries("agents"))
    assert list(entries("agents")) == sorted(entries("agents"))
    assert "guessing" not in sys.modules  # a listing imports no plug-in
    assert find("agents", "guesser-v2").path.name == "guessing.py"
    agent: Any = clgym.make_agent("guesser-v1", clgym.make("CLIP-MTIL-v0"), often=3)
    assert type(agent).__name__ == "Older"
    assert agent.often == 3


@pytest.mark.usefixtures("plugged")
def test_no_version_means_the_newest_by_number() -> None:
    assert find("agents", "guesser").spec.id == "guesser-v10"
    assert find("agents", "codyra").spec.id == "codyra-v0"


@pytest.mark.usefixtures("plugged")
def test_unknown_ids_name_the_nearest() -> None:
    with pytest.raises(NotRegisteredError, match=r"Expected a registered agent; got 'gueser-v2'\. Did you mean 'gue"):
        find("agents", "gueser-v2")
    with pytest.raises(NotRegisteredError, match=r"Known: .*guesser-v1, guesser-v10, guesser-v2"):
        find("agents", "guesser-v3")


# --- Settings and agents ------------------------------------------------------------------------------------


def test_settings_are_the_keyword_arguments() -> None:
    assert settings("scenarios", "CLIP-MTIL-v0")["source"] == "embedded"
    assert settings("agents", "zero_shot") == {"ensemble": True, "agent_seed": None}


@pytest.mark.parametrize("room", ROOMS)
def test_every_setting_has_a_default(room: registry.Room) -> None:
    for id in entries(room):
        assert inspect.Parameter.empty not in settings(room, id).values()


def test_unknown_agent_settings_name_the_nearest() -> None:
    env = clgym.make("CLIP-MTIL-v0")
    with pytest.raises(SettingError, match=r"setting of codyra-v0; got 'kapa_max'\. Did you mean 'kappa_max'\?"):
        clgym.make_agent("codyra", env, kapa_max=0.1)


def test_agents_refuse_another_modality(monkeypatch: pytest.MonkeyPatch) -> None:
    env: gymnasium.Env[Any, Any] = clgym.make("CLIP-MTIL-v0")
    texts = types.SimpleNamespace(modality="text")
    monkeypatch.setattr(type(env.unwrapped.scenario), "spec", texts)  # type: ignore[attr-defined]
    message = "Expected an agent for text inputs; got 'zero_shot', which takes image. Choose another agent"
    with pytest.raises(SettingError, match=message):
        clgym.make_agent("zero_shot", env)


@pytest.mark.usefixtures("plugged")
def test_agents_are_told_what_they_may_know() -> None:
    env = clgym.make("CLIP-MTIL-v0")
    setup = clgym.make_agent("guesser", env, seed=3, device="cpu").setup
    assert setup == Setup("image", (32, 32, 3), "embedded/tiny-clip", 3, "cpu")


def test_a_spec_is_read_though_its_docstring_shows_a_method(tmp_path: Path) -> None:
    path = tmp_path / "shown.py"
    lines = ("class Shown:", '    """Write', "", "    def answer(self): ...", '    """', "")
    path.write_text("\n".join([*lines, '    spec = AgentSpec(id="shown-v0", title="Shown")', ""]))
    (entry,) = read(path, "shown")
    assert (entry.name, entry.spec.id) == ("Shown", "shown-v0")
