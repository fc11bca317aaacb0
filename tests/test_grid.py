from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clgym.errors import ClgymError, SettingError
from clgym.grid import Axes, axes, cell, fitting, grid, playing
from clgym.registry import entries
from clgym.settings import alternatives

MTIL = "CLIP-MTIL-v0"


def test_order_is_scenario_agent_settings_seed() -> None:
    cells = grid(
        [MTIL, "CLIP-XTAIL"],
        ["zero_shot", "replay"],
        [0, 7],
        scenario_settings={MTIL: {"tasks": [2, 3]}},
        agent_settings={"replay": {"size": [50, 100]}},
    )
    assert len(cells) == 3 * (1 + 2) * 2
    assert [str(one) for one in cells[:6]] == [
        "CLIP-MTIL-v0, tasks=2 · zero_shot-v0 · seed 0",
        "CLIP-MTIL-v0, tasks=2 · zero_shot-v0 · seed 7",
        "CLIP-MTIL-v0, tasks=2 · replay-v0, size=50 · seed 0",
        "CLIP-MTIL-v0, tasks=2 · replay-v0, size=50 · seed 7",
        "CLIP-MTIL-v0, tasks=2 · replay-v0, size=100 · seed 0",
        "CLIP-MTIL-v0, tasks=2 · replay-v0, size=100 · seed 7",
    ]
    assert {one.scenario for one in cells[-6:]} == {"CLIP-XTAIL-v0"}


def test_every_cell_is_there_once() -> None:
    cells = grid([MTIL, "CLIP-MTIL"], ["replay", "replay-v0"], [0, 0], agent_settings={"replay": {"size": [50, 50]}})
    assert [one.path.as_posix() for one in cells] == ["CLIP-MTIL-v0/replay-v0,size=50/seed-0"]


def test_a_default_that_is_given_is_the_default() -> None:
    default = entries("agents")["codyra-v0"].load().__init__.__kwdefaults__["r"]
    said, silent = (cell(MTIL, "codyra", agent_settings=chosen) for chosen in ({"r": default}, {}))
    assert said == silent
    assert said.agent_settings == {}


def test_values_take_the_type_of_the_default(drill: None) -> None:
    one = cell(MTIL, "drill", agent_settings={"betas": [1, 0.5], "pause": 1})
    assert one.agent_settings == {"betas": (1.0, 0.5), "pause": 1.0}
    assert isinstance(one.agent_settings["betas"], tuple)


def test_all_are_those_for_the_modality(drill: None) -> None:
    assert {"drill-v0", "zero_shot-v0"} <= set(playing(MTIL, "all"))
    assert "reader-v0" not in playing(MTIL, "all")
    assert [one.agent for one in grid(MTIL, "all")] == playing(MTIL, "all")


@pytest.mark.parametrize(
    ("agents", "stage", "player", "words"),
    [
        ("replay", {}, {"replay": {"sise": [1]}}, "Did you mean 'size'?"),
        ("replay", {}, {"replay": {"size": ["many"]}}, "Expected size as a whole number"),
        ("replay", {}, {"replay": {"size": [{1}]}}, "Expected size to be a JSON value"),
        ("replay", {}, {"codyra": {"r": [8]}}, "Expected settings of agents in the grid; got some of codyra-v0. Leave"),
        (
            "replay",
            {"CLIP-XTAIL": {"shots": [8]}},
            {},
            "Expected settings of scenarios in the grid; got some of CLIP-X",
        ),
        ("replai", {}, {}, "Did you mean 'replay-v0'?"),
    ],
)
def test_what_is_wrong_with_a_grid(agents: str, stage: Axes, player: Axes, words: str) -> None:
    with pytest.raises(ClgymError) as caught:
        grid(MTIL, agents, scenario_settings=stage, agent_settings=player)
    assert words in str(caught.value)


def test_a_seed_is_not_negative() -> None:
    with pytest.raises(SettingError, match=r"Expected a seed of 0 or more; got -1\. Choose another\."):
        grid(MTIL, "replay", [-1])


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("8", ["8"]),
        ("8, 16", ["8", "16"]),
        ("", [""]),
        ('""', ['""']),
        ('"",a', ['""', "a"]),
        ("[1, 2],(3, 4)", ["[1, 2]", "(3, 4)"]),
        ("[[1, 2], [3]]", ["[[1, 2], [3]]"]),
        ('{"a": 1, "b": 2}', ['{"a": 1, "b": 2}']),
        ("'a,b',c", ["'a,b'", "c"]),
        ('["a,b", "c]"],d', ['["a,b", "c]"]', "d"]),
        ("it's,so", ["it's", "so"]),
        ("a photo (large),b", ["a photo (large)", "b"]),
    ],
)
def test_values_are_parted_by_commas_outside_of_brackets_and_quotes(text: str, values: list[str]) -> None:
    assert alternatives(text) == values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,,2", "Expected values parted by commas; got '1,,2'. Write \"\" for an empty text."),
        ("1,", "Expected values parted by commas; got '1,'."),
        ("[1, 2", "Expected values parted by commas; got '[1, 2', which is not closed. Write a list as [1, 2]"),
        ('a,"b', "got '\"b', which is not closed."),
    ],
)
def test_values_that_are_none(text: str, words: str) -> None:
    with pytest.raises(SettingError) as caught:
        alternatives(text)
    assert words in str(caught.value)


def test_axes_of_everybody_and_of_one() -> None:
    found = axes("agents", ["replay-v0", "codyra-v0"], ["lr=1e-3,2e-3", "codyra:r=8,16", "codyra-v0:lr=1"])
    assert found == {"replay-v0": {"lr": [1e-3, 2e-3]}, "codyra-v0": {"lr": [1.0], "r": [8, 16]}}


def test_lists_in_axes(drill: None) -> None:
    assert axes("agents", ["drill-v0"], ["betas=[0.9, 0.99],(0.5, 1)", 'say="a, b",c']) == {
        "drill-v0": {"betas": [(0.9, 0.99), (0.5, 1.0)], "say": ["a, b", "c"]}
    }


def test_axes_of_those_who_have_it() -> None:
    played = ["zero_shot-v0", "codyra-v0"]
    assert axes("agents", played, ["r=8"], some=True) == {"zero_shot-v0": {}, "codyra-v0": {"r": [8]}}
    with pytest.raises(SettingError, match="Expected a registered setting of zero_shot-v0; got 'x'"):
        axes("agents", played, ["x=8"], some=True)
    with pytest.raises(SettingError, match="Expected a registered setting of zero_shot-v0; got 'r'"):
        axes("agents", played, ["zero_shot:r=8"], some=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr", "Expected KEY=VALUE, or ID:KEY=VALUE; got 'lr'. Write for example lr=1e-3,2e-3."),
        ("codyra:=3", "Expected KEY=VALUE, or ID:KEY=VALUE; got 'codyra:=3'."),
        ("size=8", "Expected a registered setting of codyra-v0; got 'size'."),
        ("size=8", " Write ID:size=… for those that have it."),
        ("codyra:rr=8", "Expected a registered setting of codyra-v0; got 'rr'. Did you mean 'r'?"),
        ("codyra:r=x", "Expected r as a whole number; got 'x'."),
        ("ewc:lr=1", "Expected one of replay-v0, codyra-v0 before the colon; got 'ewc:lr=1'. Add ewc-v0 to the sweep"),
        ("codira:lr=1", "Did you mean 'codyra-v0'?"),
        ("seed=1", "Expected a registered setting"),
    ],
)
def test_axes_that_are_none(text: str, words: str) -> None:
    with pytest.raises(ClgymError) as caught:
        axes("agents", ["replay-v0", "codyra-v0"], [text])
    assert words in str(caught.value)


def test_an_axis_is_given_once() -> None:
    with pytest.raises(
        SettingError, match=r"Expected codyra:r once; got it again as 'codyra:r=8'. Write codyra:r=V1,V2."
    ):
        axes("agents", ["codyra-v0"], ["codyra:r=16", "codyra:r=8"])


def test_agents_that_refuse_are_left_out_with_their_reason(drill: None) -> None:
    cells = grid(MTIL, ["drill", "picky"], [0, 1], scenario_settings={MTIL: {"tasks": [2]}})
    kept, skipped = fitting(cells, skip=True)
    assert [one.agent for one in kept] == ["drill-v0", "drill-v0"]
    (skip,) = skipped
    assert (skip.scenario, skip.agent) == ("CLIP-MTIL-v0, tasks=2", "picky-v0")
    assert skip.reason == "Expected images of 64 pixels; got 32. Choose another agent."
    with pytest.raises(SettingError, match="Expected images of 64 pixels"):
        fitting(cells, skip=False)


def test_settings_that_are_refused_are_raised(drill: None) -> None:
    chosen: dict[str, dict[str, list[Any]]] = {"drill": {"lr": [1.0, -1.0]}, "picky": {"lr": [1.0]}}
    cells = grid(MTIL, ["picky", "drill"], agent_settings=chosen)
    with pytest.raises(SettingError, match=r"Expected lr of 0 or more; got -1\.0"):
        fitting(cells, skip=True)
    kept, skipped = fitting(cells[:2], skip=True)
    assert [one.player for one in kept] == ["drill-v0, lr=1.0"]
    assert [skip.agent for skip in skipped] == ["picky-v0, lr=1.0"]


def test_a_scenario_that_refuses_is_raised(tmp_path: Path) -> None:
    cells = grid(MTIL, "zero_shot", scenario_settings={MTIL: {"tasks": [-1]}})
    with pytest.raises(SettingError, match="Expected tasks to be 0 or more"):
        fitting(cells, skip=True)
