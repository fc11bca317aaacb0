"""A run that is there already is kept, continued or replaced, and never half of each."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from clgym import checkpoint
from clgym.errors import RecordError, SettingError
from clgym.record import RunRecord
from clgym.runner import folder_of, run
from tests.runner.conftest import FILES, Stop, Walker, contents, interrupt, throw


def test_resume_on_nothing_starts(tmp_path: Path, whole: dict[str, Any]) -> None:
    run("Toy-v0", "walker", out=tmp_path / "new", resume=True)
    assert contents(tmp_path / "new") == whole


def test_resume_on_a_finished_run_plays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run("Toy-v0", "walker", out=tmp_path)
    folder = tmp_path / folder_of(record)
    checkpoint.write(folder / "checkpoint", 1, {"a": {}})  # as a kill after the record's last line leaves it
    monkeypatch.setattr(Walker, "__init__", throw(AssertionError()))
    assert run("Toy-v0", "walker", out=tmp_path, resume=True) == record
    assert sorted(os.listdir(folder)) == FILES


def test_a_run_that_is_there_is_not_touched(tmp_path: Path) -> None:
    record = run("Toy-v0", "walker", out=tmp_path)
    folder = tmp_path / folder_of(record)
    words = f"Expected a new run; got {folder}, which holds one that is finished. Add --resume to continue it or "
    with pytest.raises(SettingError, match=re.escape(words)):
        run("Toy-v0", "walker", out=tmp_path)
    assert RunRecord.load(folder) == record


@pytest.mark.parametrize("gone", [False, True])
def test_an_unfinished_run_is_not_touched(tmp_path: Path, gone: bool) -> None:
    folder = interrupt(tmp_path)
    if gone:
        (folder / "run.json").unlink()
    before = sorted(folder.rglob("*"))
    with pytest.raises(SettingError, match=r"which holds one that is running\. Add --resume to continue it or --overw"):
        run("Toy-v0", "walker", out=tmp_path)
    assert sorted(folder.rglob("*")) == before


def test_overwrite_removes_that_run_and_no_other(tmp_path: Path, whole: dict[str, Any]) -> None:
    folder = interrupt(tmp_path)
    run("Toy-v0", "walker", 1, out=tmp_path)
    other = contents(tmp_path, seed=1)
    (folder / "old" / "deep").mkdir(parents=True)
    (folder / "old" / "deep" / "file").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    (folder / "link").symlink_to(elsewhere)
    run("Toy-v0", "walker", out=tmp_path, overwrite=True)
    assert contents(tmp_path) == whole
    assert contents(tmp_path, seed=1) == other
    assert (elsewhere / "precious").exists()


def test_a_bad_setting_overwrites_nothing(tmp_path: Path) -> None:
    record = run("Toy-v0", "walker", out=tmp_path)
    with pytest.raises(SettingError, match=r"Expected a registered setting of walker-v0; got 'strife'\. Did you mean"):
        run("Toy-v0", "walker", out=tmp_path, overwrite=True, strife=1)
    assert RunRecord.load(tmp_path / folder_of(record)) == record


def test_a_killed_overwrite_leaves_no_run_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / folder_of(run("Toy-v0", "walker", out=tmp_path))
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        real(path, missing_ok)
        raise Stop

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(Stop):
        run("Toy-v0", "walker", out=tmp_path, overwrite=True)
    monkeypatch.undo()
    with pytest.raises(RecordError, match=r"Expected the file .*; got none\. Restore it"):
        RunRecord.load(folder)
