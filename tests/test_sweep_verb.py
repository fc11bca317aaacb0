"""``clgym sweep`` and ``--probe-every``; what children do is done in this process."""

from __future__ import annotations

import json
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from clgym.console import plain_table, stdout
from clgym.hub_sets import SETS
from clgym.metrics import METRICS
from clgym.record import RunRecord
from clgym.registry import entries, find
from clgym.sweep_verb import with_address
from clgym.worker import Order
from tests.conftest import called_here, cli, said

MTIL = "CLIP-MTIL-v0"
SMALL = ("--with", "tasks=2", "--with", "steps=3")
HERE = ("--jobs", "1", "--threads", "1", "--device", "cpu")
ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("drilled")


def swept(*args: str | Path, exit_code: int = 0) -> Result:
    return cli("sweep", MTIL, *SMALL, *HERE, *args, exit_code=exit_code)


def loaded(*args: str | Path, exit_code: int = 0) -> Any:
    return json.loads(swept(*args, "--json", exit_code=exit_code).stdout)


def test_a_sweep_shows_progress_and_the_table(here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # wide enough for one table
    grid = ("--agents", "zero_shot,drill", "--seeds", "0-1", "--set", "drill:lr=0,1", "--out", tmp_path)
    result = swept(*grid)
    assert len(here) == 6
    assert "[6/6] finished: CLIP-MTIL-v0, steps=3, tasks=2 · drill-v0, lr=1.0 · seed 1" in said(result)
    assert result.stdout.count("n=2") == 3
    assert "drill-v0, lr=1.0" in result.stdout
    again = swept(*grid)
    assert len(here) == 6
    assert "6 of 6 runs are finished already." in said(again)
    assert again.stdout == result.stdout


def test_json_names_cells_and_table(here: list[str], tmp_path: Path) -> None:
    found = loaded("--agents", "drill", "--seeds", "0-1", "--out", tmp_path, "--quiet")
    assert [cell["seed"] for cell in found["cells"]] == [0, 1]
    cell = found["cells"][0]
    assert cell["scenario_settings"] == {"steps": 3, "tasks": 2}
    assert cell["state"] == "finished"
    assert cell["error"] is None
    assert RunRecord.load(Path(cell["folder"])).agent == "drill-v0"
    assert [row["seeds"] for row in found["table"]] == [[0, 1]]
    assert found["ladders"] == found["skipped"] == []


def test_quiet_prints_the_folders_alone(here: list[str], tmp_path: Path) -> None:
    result = swept("--agents", "drill", "--out", tmp_path, "--quiet")
    assert result.stdout == f"{tmp_path / here[0]}\n"
    assert result.stderr == ""


def test_a_failing_cell_is_reported_at_the_end(here: list[str], tmp_path: Path) -> None:
    grid = ("--agents", "drill", "--set", 'fail="it, is broken",""', "--out", tmp_path)
    result = swept(*grid, exit_code=1)
    assert len(here) == 2
    assert "n=1" in result.stdout
    assert "fail=it, is broken · seed 0 failed with ValueError: it, is broken" in said(result)
    assert f"log: {tmp_path / here[0] / 'log.txt'}" in said(result)
    again = said(result).partition("alone: ")[2]
    assert again == (
        f"clgym run {MTIL} --agent drill-v0 --seeds 0 --with steps=3 --with tasks=2 "
        f"""--set 'fail="it, is broken"' --out {tmp_path} --device cpu --precision fp32 --resume"""
    )
    found = loaded(*grid, exit_code=1)
    assert [cell["state"] for cell in found["cells"]] == ["failed", "finished"]
    assert found["cells"][0]["error"] == {"kind": "ValueError", "message": "it, is broken"}


def test_all_agents_and_those_that_refuse(here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for id in set(entries("agents")) - {"drill-v0", "picky-v0", "reader-v0", "zero_shot-v0"}:
        monkeypatch.delitem(entries("agents"), id)
    result = swept("--agents", "all", "--dry-run", "--out", tmp_path)
    assert [line.split()[3] for line in result.stdout.splitlines()[1:]] == ["drill-v0", "zero_shot-v0"]
    assert said(result) == (
        "Skipped picky-v0 on CLIP-MTIL-v0, steps=3, tasks=2: Expected images of 64 pixels; got 32. "
        "Choose another agent."
    )
    found = loaded("--agents", "all", "--dry-run", "--out", tmp_path)
    assert [skip["agent"] for skip in found["skipped"]] == ["picky-v0"]
    swept("--agents", "drill,picky", "--out", tmp_path, exit_code=2)
    assert here == []


def test_dry_run_says_what_is_done(here: list[str], tmp_path: Path) -> None:
    swept("--agents", "drill", "--out", tmp_path)
    swept("--agents", "drill", "--set", "fail=x", "--out", tmp_path, exit_code=1)
    result = swept("--agents", "drill", "--seeds", "0-1", "--set", 'fail="",x', "--dry-run", "--out", tmp_path)
    states = [line.split()[-1] for line in result.stdout.splitlines()[1:]]
    assert states == ["finished", "waiting", "interrupted", "waiting"]
    assert len(here) == 2


def test_a_ladder_is_shown_and_reported_at_its_best(
    here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # wide enough for one table
    grid = ("--agents", "zero_shot,drill", "--seeds", "0-1", "--ladder", "lr=0,1,3", "--out", tmp_path)
    before = swept(*grid, "--dry-run")
    assert before.stdout.count("drill-v0, lr=? ") == 2
    assert before.stdout.count(" 100 ") == 3
    found = loaded(*grid)
    assert len(here) == 3 + 4
    (ladder,) = found["ladders"]
    rungs = {rung["settings"]["lr"]: rung["average_accuracy"] for rung in ladder["rungs"]}
    for rung in ladder["rungs"]:
        assert rung["average_accuracy"] == RunRecord.load(Path(rung["folder"])).metrics["average_accuracy"]
    assert len(set(rungs.values())) > 1
    assert rungs[ladder["chosen"]["lr"]] == max(rungs.values())
    assert (ladder["agent"], ladder["tuning_seed"]) == ("drill-v0", 100)
    assert {cell["seed"] for cell in found["cells"]} == {0, 1}
    assert {cell["agent_settings"].get("lr", 0.0) for cell in found["cells"] if cell["agent"] == "drill-v0"} == {
        ladder["chosen"]["lr"]
    }
    after = swept(*grid, "--dry-run")
    assert " finished" in after.stdout
    assert "waiting" not in after.stdout
    shown = swept(*grid).stdout
    assert "average accuracy on seed 100, %" in shown
    assert shown.count(" best") == 1
    assert len(here) == 3 + 4


def test_a_ladder_names_the_rung_that_failed(here: list[str], tmp_path: Path) -> None:
    result = swept("--agents", "drill", "--ladder", "fail=x,", "--ladder", "lr=0", "--out", tmp_path, exit_code=2)
    assert "Expected values parted by commas; got 'x,'." in said(result)
    result = swept("--agents", "drill", "--ladder", 'fail=x,""', "--out", tmp_path, exit_code=1)
    assert len(here) == 2
    assert "ValueError, " in result.stdout
    assert "fail=x · seed 100 failed with ValueError: x" in said(result)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--agents", "codira"], "Did you mean 'codyra-v0'?"),
        (["--agents", "drill,"], "Expected a registered agent; got ''."),
        (["--agents", "drill", "--set", "lr=x"], "Expected lr as a number; got 'x'."),
        (["--agents", "drill", "--set", "lr=-1"], "Expected lr of 0 or more; got -1.0. Raise it."),
        (["--agents", "drill", "--ladder", "lr=-1,0"], "Expected lr of 0 or more; got -1.0. Raise it."),
        (["--agents", "drill", "--with", "shots=-1"], "Expected shots to be 0 or more; got -1."),
        (["--agents", "drill", "--seeds", "x"], "Expected seeds as numbers and rising ranges"),
        (["--agents", "drill", "--seeds", "100", "--ladder", "lr=0,1"], "Expected a tuning seed that is not reported"),
        (["--agents", "drill", "--jobs", "-1"], "Expected jobs of 0 or more; got -1."),
        (["--agents", "drill", "--ray", "no-such-host:1"], "Expected the package 'ray'; got none. Install it with"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_played(
    args: list[str], words: str, here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = swept(*args, "--out", tmp_path, exit_code=6 if "--ray" in args else 2)
    assert said(result).count("Error: ") == 1
    assert words in said(result)
    assert here == []


def test_ctrl_c_says_how_to_continue(here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ctrl_c(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clgym.board.Board.on_progress", ctrl_c)
    args = ["sweep", MTIL, "--agents", "drill", "--set", "betas=[0.5, 1]", *SMALL, *HERE, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["clgym", *args])
    result = cli(*args, exit_code=128 + signal.SIGINT)
    assert "Stopping: runs finish the event in hand and write a checkpoint." in said(result)
    assert said(result).endswith(
        "Interrupted; runs in hand keep checkpoints. Continue with: clgym sweep CLIP-MTIL-v0 --agents drill "
        f"--set 'betas=[0.5, 1]' --with tasks=2 --with steps=3 --jobs 1 --threads 1 --device cpu --out {tmp_path}"
    )


@pytest.mark.parametrize("verb", [["run", "--agent", "zero_shot"], ["sweep", "--agents", "zero_shot", *HERE]])
def test_probe_every(verb: list[str], here: list[str], tmp_path: Path) -> None:
    cli(verb[0], MTIL, *verb[1:], *SMALL, "--probe-every", "2", "--out", tmp_path, "--quiet")
    (record,) = (RunRecord.load(path.parent) for path in tmp_path.rglob("run.json"))
    assert record.scenario_settings == {"probe_every": 2, "steps": 3, "tasks": 2}


@pytest.mark.parametrize(
    ("words", "out"),
    [
        (["--ray"], ["--ray="]),
        (["--ray", "--quiet"], ["--ray=", "--quiet"]),
        (["--ray", "--set=codyra:r=8"], ["--ray=", "--set=codyra:r=8"]),
        (["--ray", MTIL], ["--ray=", MTIL]),
        (["--ray", "auto"], ["--ray", "auto"]),
        (["--ray", "ray://head:10001"], ["--ray", "ray://head:10001"]),
        (["--ray=head:6379", "x"], ["--ray=head:6379", "x"]),
    ],
)
def test_ray_stands_with_or_without_an_address(words: list[str], out: list[str]) -> None:
    assert with_address(words) == out


def test_ray_reaches_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def play_on_ray(orders: list[Order], address: str, gpus: float | None, *more: object) -> None:
        asked.append(([order.threads for order in orders], address, gpus))
        raise ZeroDivisionError

    monkeypatch.setattr("clgym.sweep_ray.play_on_ray", play_on_ray)
    args = (MTIL, "--agents", "drill", *SMALL, "--out", tmp_path)
    for words in (["--ray"], ["--ray", "head:6379", "--gpus", "0.5", "--threads", "3"]):
        with pytest.raises(ZeroDivisionError):
            cli("sweep", *words, *args)
    assert asked == [([1], "", None), ([3], "head:6379", 0.5)]


@pytest.mark.parametrize("columns", [20, 80])
def test_ids_are_whole_however_narrow_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    listed, explained = cli("list").stdout, cli("explain").stdout
    assert all(id in listed for id in [*entries("agents"), *entries("scenarios")])
    assert all(id in explained for id in METRICS)
    shown = cli("conformance").stdout
    assert "forgetting_first_to_last" in shown
    assert "backward_transfer" in shown
    needed = cli("download", MTIL, "--check").stdout
    assert all(text in needed for name in find("scenarios", MTIL).spec.hub for text in (name, SETS[name].repo))
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown


def test_ids_in_results_are_whole_however_narrow_the_terminal(
    here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    grid = ("--agents", "zero_shot,drill", "--seeds", "0", "--ladder", "lr=0,1", "--out", tmp_path)
    for result in (swept(*grid), swept(*grid, "--dry-run"), cli("score", tmp_path)):
        assert "drill-v0" in result.stdout
        assert "zero_shot-v0" in result.stdout
    shown = cli("run", MTIL, *SMALL, "--agent", "drill", "--seeds", "5", "--out", tmp_path).stdout
    assert "learning_accuracy" in shown


def test_a_column_breaks_lines_but_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    with (console := stdout()).capture() as capture:
        console.print(plain_table(["id", "text"], [["codyra-v0, r=8", "of few words"]]), crop=False)
    assert [line.split() for line in capture.get().splitlines()] == [
        ["id", "text"],
        ["codyra-v0,", "of", "few"],
        ["r=8", "words"],
    ]


def test_results_writes_a_page(here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [MTIL, "--agents", "zero_shot,drill", "--seeds", "0-1", *SMALL, *HERE, "--ladder", "lr=0,1,3"]
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    (page.parent / "page_notes.md").write_text("What it means.\n")
    script = ["results.py", *words, "--out", str(tmp_path / "runs"), "--page", str(page), "--title", "Drills"]
    monkeypatch.setattr(sys, "argv", script)
    monkeypatch.setattr(subprocess, "run", called_here)
    assert runpy.run_path(str(ROOT / "benchmarks" / "results.py"))["main"]() == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Drills\n")
    assert f"clgym sweep {MTIL} --agents zero_shot,drill --seeds 0-1 --with tasks=2" in text
    assert "7 runs of 0." in text
    assert "threads 1; torch " in text
    assert text.count("| n=2 |") == 2
    assert "| agent | lr=0.0 | lr=1.0 | lr=3.0 |" in text
    assert text.count("**") == 2
    assert "](img/page_1.png)" not in text  # of two agents the table says all
    assert text.endswith("What it means.\n")
    results = runpy.run_path(str(ROOT / "benchmarks" / "results.py"))
    drawn = results["pictures"]
    monkeypatch.setitem(drawn.__globals__, "FEW", 1)
    records = [RunRecord.load(path.parent) for path in (tmp_path / "runs").rglob("run.json")]
    assert drawn(records, page, 1)[0].endswith("](img/page_1.png)")
    assert (page.parent / "img" / "page_1.png").read_bytes().startswith(b"\x89PNG")


def test_results_writes_nothing_about_a_sweep_that_failed(
    here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], 1, "{}")
    monkeypatch.setattr(sys, "argv", ["results.py", MTIL, "--page", str(tmp_path / "page.md")])
    monkeypatch.setattr(subprocess, "run", lambda command, **options: failed)
    assert runpy.run_path(str(ROOT / "benchmarks" / "results.py"))["main"]() == 1
    assert not (tmp_path / "page.md").exists()
