"""The command line, called in this process, and runs that it has played."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from clgym.__main__ import app

SMALL = ("--with", "tasks=2", "--with", "steps=1")


def cli(*args: str | Path, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_code, (result.stdout, result.stderr)
    return result


def loaded(*args: str | Path, exit_code: int = 0) -> Any:
    return json.loads(cli(*args, "--json", exit_code=exit_code).stdout)


def said(result: Result) -> str:
    """What stands on standard error, without line breaks."""
    return " ".join(result.stderr.split())


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
