"""What the pages say is what the code does."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import clgym
from clgym.registry import Entry, entries, read

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_readmes_loop_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    loop = next(code for kind, code in BLOCKS if kind == "python" and "env.step" in code)
    make = clgym.make
    monkeypatch.setattr(clgym, "make", lambda id: make(id, tasks=2, steps=2))
    exec(compile(loop, "README.md", "exec"), {})
    assert "Forgetting" in capsys.readouterr().out


def test_the_readmes_method_is_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clgym.check import check_agent

    code = next(code for kind, code in BLOCKS if kind == "python" and "class MyMethod" in code)
    path = tmp_path / "my_method.py"
    path.write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (entry,) = read(path, "my_method")
    assert isinstance(entry, Entry)
    monkeypatch.setitem(entries("agents"), entry.spec.id, entry)
    check_agent("my_method", tasks=2, steps=4)


def test_the_readmes_verbs_exist() -> None:
    from typer.main import get_command

    from clgym.__main__ import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"^clgym (\w+)", README, re.M)) | set(re.findall(r"bin/clgym (\w+)", README))
    assert named == named & known


def test_every_link_of_the_pages_leads_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_method_page_lists_every_agent() -> None:
    page = runpy.run_path(str(ROOT / "docs/generate.py"))["agents_page"]()
    assert all(f"## `{id}`" in page for id in entries("agents"))


def test_the_scenario_page_lists_every_scenario_and_kind() -> None:
    page = runpy.run_path(str(ROOT / "docs/generate.py"))["scenarios_page"]()
    assert all(f"## `{id}`" in page for id in entries("scenarios"))
    for id, entry in entries("scenarios").items():
        for kind in entry.spec.tags:
            line = next(line for line in page.splitlines() if line.startswith(f"| {kind} |"))
            assert f"`{id}`" in line
