"""The program as a whole: how it starts, and how it shows errors and numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import clgym
from clgym.__main__ import app
from clgym.console import percent
from tests.conftest import loaded


def test_errors_are_json_where_it_is_asked_for(tmp_path: Path) -> None:
    found = loaded("run", "CLIP-MTL-v0", "--agent", "zero_shot", "--out", tmp_path, exit_code=2)
    assert found["error"]["kind"] == "NotRegisteredError"
    assert "Did you mean 'CLIP-MTIL-v0'?" in found["error"]["message"]


def test_what_is_not_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("clgym.doctor.examine", broken)
    assert isinstance(CliRunner().invoke(app, ["doctor"]).exception, ZeroDivisionError)


def test_list_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom clgym.__main__ import app\n"
        "app(['list'], standalone_mode=False)\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'transformers', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)


def test_module_runs_and_says_its_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clgym", "--version"], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stdout == f"clgym {clgym.__version__}\n"


def test_percent_of_rounded_and_missing() -> None:
    assert [percent(x) for x in (0.9994, 0.99951, float(np.nan))] == ["99.9", "100", "-"]
