"""Runs that the command line has played in this process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import loaded

SMALL = ("--with", "tasks=2", "--with", "steps=1")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two agents with two seeds each, played by the command line."""
    out = tmp_path_factory.mktemp("runs")
    agents = ("--agent", "zero_shot", "--agent", "sequential_lora")
    found = loaded("run", "CLIP-MTIL-v0", *agents, "--seeds", "0-1", *SMALL, "--out", out)
    assert [(run["agent"], run["seed"]) for run in found["runs"]] == [
        ("zero_shot-v0", 0),
        ("zero_shot-v0", 1),
        ("sequential_lora-v0", 0),
        ("sequential_lora-v0", 1),
    ]
    return out


@pytest.fixture
def one(runs: Path, tmp_path: Path) -> Path:
    """A copy of one run, to be damaged."""
    return Path(shutil.copytree(runs / "CLIP-MTIL-v0,steps=1,tasks=2" / "zero_shot-v0" / "seed-0", tmp_path / "one"))
