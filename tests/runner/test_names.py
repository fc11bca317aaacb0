"""The name of a run's folder: settings stand in it, nasty ones are safe, and no two runs share one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from clgym.record import RunRecord
from clgym.runner import folder_of, run


def named(**settings: Any) -> str:
    record = RunRecord(clgym="", scenario="S-v0", source="", backbone="", agent="a-v0", seed=0, agent_settings=settings)
    return folder_of(record).as_posix()


def test_settings_stand_in_the_name() -> None:
    assert named(lr=1e-5, order="II", deep=True, r=16) == "S-v0/a-v0,deep=true,lr=1e-05,order=II,r=16/seed-0"


NASTY = [
    "../../etc/passwd",
    "..",
    "/",
    "",
    "a/b",
    "a~b",
    "a:b",
    "a,b=c",
    "1",
    "true",
    "null",
    "ü",
    "u\u0308",
    "a b",
    "a\nb",
    "a\0b",
    "x" * 300,
    "x" * 301,
    1,
    1.0,
    "1.0",
    True,
    None,
    [1, 2],
    [1, "2"],
    "[1, 2]",
    {"a": 1},
    "C:\\data",
]


def test_nasty_settings_are_safe_names_and_never_share_one() -> None:
    names = [named(note=value) for value in NASTY]
    assert len(set(names)) == len(NASTY)
    for name in names:
        scenario, agent, seed = name.split("/")
        assert (scenario, seed) == ("S-v0", "seed-0")
        assert re.fullmatch(r"a-v0,note=[A-Za-z0-9_.,=+~-]*", agent)
        assert len(agent) <= 200


def test_separators_in_values_are_not_those_of_settings() -> None:
    assert named(a="x,b=y") != named(a="x", b="y")
    assert named(**{f"k{i}": i for i in range(60)}) != named(**{f"k{i}": i for i in range(59)}, k59=60)


@pytest.mark.parametrize("note", ["a/b", "II", "x" * 400])
def test_a_run_is_found_again_by_its_settings(tmp_path: Path, note: str) -> None:
    chosen: dict[str, Any] = {"scenario_settings": {"note": note}, "note": note, "pair": (0.1, 1), "stride": 1}
    record = run("Toy-v0", "walker", out=tmp_path, **chosen)
    assert record.scenario_settings == {"note": note}
    assert record.agent_settings == {"note": note, "pair": [0.1, 1]}
    loaded = RunRecord.load(tmp_path / folder_of(record))
    assert loaded == record
    assert folder_of(loaded) == folder_of(record)
    assert run("Toy-v0", "walker", out=tmp_path, resume=True, **chosen) == record
    assert json.loads((tmp_path / folder_of(record) / "run.json").read_text())["agent_settings"]["note"] == note


def test_settings_that_are_the_defaults_are_not_noted(tmp_path: Path) -> None:
    record = run("Toy-v0", "walker", stride=1, pair=[0.5, 1.0], scenario_settings={"tasks": 2, "extra": 0})
    assert record.agent_settings == {}
    assert record.scenario_settings == {}
