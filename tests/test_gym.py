"""Gymnasium and clgym are one: ids, recipes, checks, vector environments and pictures, as its own users meet them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import clgym
from clgym.env import ContinualEnv
from clgym.errors import NotRegisteredError, SettingError
from clgym.events import End, Event, Guess, Query
from clgym.registry import entries

ID = "clgym/CLIP-MTIL-v0"
SHORT: dict[str, Any] = {"tasks": 2, "steps": 2}
Seen = tuple[Event, float, bool]


def make(**settings: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(ID, **{**SHORT, **settings})


def action(event: Event, k: int) -> Guess | None:
    """Guess where something is asked."""
    return Guess(k) if isinstance(event, Query) else None


def lifetime(env: gymnasium.Env[Any, Any], seed: int | None = 0) -> list[Seen]:
    event, _ = env.reset(seed=seed)
    seen: list[Seen] = [(event, 0.0, False)]
    while not seen[-1][2]:
        event, reward, terminated, truncated, _ = env.step(action(event, len(seen)))
        assert truncated is False
        seen.append((event, float(reward), terminated))
    return seen


@pytest.fixture(scope="module")
def single() -> list[Seen]:
    """Return one lifetime as a single environment shows it."""
    return lifetime(make())


def test_a_lifetime_through_gymnasium(single: list[Seen]) -> None:
    assert isinstance(single[-1][0], End)
    assert [done for *_, done in single] == [False] * (len(single) - 1) + [True]
    assert lifetime(clgym.make("CLIP-MTIL-v0", **SHORT)) == single


def test_every_scenario_is_registered() -> None:
    for id in entries("scenarios"):
        assert gymnasium.spec(f"clgym/{id}").kwargs == {"scenario": id}


def test_gymnasium_checks_it_with_a_spec_and_no_warning() -> None:
    env = gymnasium.make(ID, disable_env_checker=True, **SHORT).unwrapped
    assert env.spec is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)


def test_gymnasium_watches_it_play_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lifetime(gymnasium.make(ID, disable_env_checker=False, **SHORT))


def test_the_recipe_survives_json(single: list[Seen]) -> None:
    spec = make().spec
    assert spec is not None
    again = EnvSpec.from_json(spec.to_json())
    assert again.kwargs == {"scenario": "CLIP-MTIL-v0", **SHORT}
    assert lifetime(gymnasium.make(again)) == single


def test_wrappers_change_no_report() -> None:
    bare, wrapped = make(), gymnasium.wrappers.RecordEpisodeStatistics(make())
    lifetime(bare)
    lifetime(wrapped)
    reports = [str(env.unwrapped.report()) for env in (bare, wrapped)]  # type: ignore[attr-defined]
    assert reports[0] == reports[1]


# --- Vectors ------------------------------------------------------------------------------------------------


def vector(mode: AutoresetMode) -> SyncVectorEnv[Any, Any]:
    return SyncVectorEnv([make, make], autoreset_mode=mode)


def played(env: Any, seeds: list[int]) -> Iterator[list[Seen]]:
    """Yield what all environments of a vector show, step by step, until all are over."""
    events, _ = env.reset(seed=seeds)
    yield [(event, 0.0, False) for event in events]
    over = False
    k = 1
    while not over:
        events, rewards, ended, truncated, infos = env.step(tuple(action(event, k) for event in events))
        assert not truncated.any()
        last = infos.get("final_obs", events)
        yield [(last[i] if ended[i] else events[i], float(rewards[i]), bool(ended[i])) for i in range(len(events))]
        over, k = bool(ended.all()), k + 1


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_all_autoreset_modes_show_the_same_lifetime(mode: AutoresetMode, single: list[Seen]) -> None:
    env = vector(mode)
    seen = list(played(env, [0, 1]))
    assert [both[0] for both in seen] == single
    assert [both[1] for both in seen] == lifetime(make(), seed=1)
    env.close()


def test_the_next_lifetime_follows_whatever_the_mode() -> None:
    plain = make()
    lifetime(plain)
    following = lifetime(plain, seed=None)
    env = vector(AutoresetMode.NEXT_STEP)
    list(played(env, [0, 0]))
    events, *_ = env.step((None, None))
    assert [events[0], events[1]] == [following[0][0]] * 2
    env.close()
    env = vector(AutoresetMode.DISABLED)
    list(played(env, [0, 0]))
    events, _ = env.reset(options={"reset_mask": np.array([True, False])})
    assert events[0] == following[0][0]
    assert isinstance(events[1], End)
    env.close()


def test_processes_show_the_same_lifetime(single: list[Seen]) -> None:
    there = partial(gymnasium.make, f"clgym:{ID}", **SHORT)  # the prefix imports clgym, which enters the ids
    env = AsyncVectorEnv([there], shared_memory=False, context="spawn")
    try:
        assert [one[0] for one in played(env, [0])] == single
    finally:
        env.close()


# --- Pictures -----------------------------------------------------------------------------------------------


def test_ansi_is_a_line() -> None:
    env = make(render_mode="ansi")
    env.reset(seed=0)
    text: Any = env.render()
    assert re.fullmatch(r" +0 Query +\d+ questions of task 0, \d+ candidates\n", text)


def test_rgb_array_is_a_picture() -> None:
    env = make(render_mode="rgb_array")
    env.reset(seed=0)
    before: Any = env.render()
    lifetime(env)
    after: Any = env.render()
    for picture in (before, after):
        assert isinstance(picture, np.ndarray)
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
    assert not np.array_equal(before, after)


def test_no_mode_renders_nothing() -> None:
    env = make().unwrapped
    env.reset(seed=0)
    assert env.render() is None


def test_unknown_render_modes() -> None:
    with pytest.raises(SettingError, match="Expected render_mode to be None, 'ansi' or 'rgb_array'; got 'ansii'"):
        clgym.registry.build("CLIP-MTIL-v0", render_mode="ansii")


# --- Names and settings -------------------------------------------------------------------------------------


def test_unknown_scenarios() -> None:
    with pytest.raises(NotRegisteredError, match=r"scenario; got 'CLIP-MITL-v0'\. Did you mean 'CLIP-MTIL-v0'\?"):
        clgym.make("CLIP-MITL-v0")
    with pytest.raises(gymnasium.error.NameNotFound):
        gymnasium.make("clgym/CLIP-MITL-v0")


def test_unknown_settings() -> None:
    with pytest.raises(SettingError, match=r"setting of CLIP-MTIL-v0; got 'task'\. Did you mean 'tasks'\?"):
        clgym.make("CLIP-MTIL-v0", task=2)
    with pytest.raises(SettingError, match="Did you mean 'tasks'"):
        gymnasium.make(ID, task=2)


@pytest.mark.parametrize(("setting", "value"), [("tasks", -1), ("order", "III"), ("backbone", "ViT-B-16/openai")])
def test_settings_out_of_range(setting: str, value: Any) -> None:
    with pytest.raises(SettingError, match=r"Expected .*; got"):
        clgym.make("CLIP-MTIL-v0", **{setting: value})


def test_the_newest_version_needs_no_number() -> None:
    env = clgym.make("CLIP-MTIL", **SHORT)
    assert env.spec is not None
    assert env.spec.id == ID


def test_nothing_is_loaded_before_reset() -> None:
    env = make().unwrapped
    assert isinstance(env, ContinualEnv)
    assert env.position == -1
    env.close()
    env.close()
