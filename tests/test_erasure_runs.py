"""Runs with requests to forget, their references and their audits, played by the command line on four small domains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import Result

import clgym
from clgym.audit_runs import _Player, kept
from clgym.env import ContinualEnv
from clgym.erasure_gallery import figures
from clgym.erasure_results import read_answers, results
from clgym.erasure_scores import point_of
from clgym.errors import RecordError
from clgym.record import RunRecord
from clgym.reference_runs import reference_seeds, stages
from clgym.registry import make_agent
from tests.conftest import cli, said

AGENT = "sequential_lora"
Settings = dict[str, Any]


@pytest.fixture(scope="module")
def settings(four_domains: Path) -> Settings:
    return {"source": str(four_domains), "backbone": "embedded/tiny-clip", "amount": 1, "steps": 2, "erase_steps": 1}


def with_(settings: Settings) -> list[str]:
    return [part for name, value in settings.items() for part in ("--with", f"{name}={value}")]


@pytest.fixture(scope="module")
def played(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run with two references, and what the command said."""
    out = tmp_path_factory.mktemp("runs")
    args = ("run", "CLIP-Erasure-v0", "--agent", AGENT, *with_(settings), "--out", out, "--references", 2)
    return out, cli(*args)


@pytest.fixture(scope="module")
def out(played: tuple[Path, Result]) -> Path:
    return played[0]


@pytest.fixture
def copy(out: Path, tmp_path: Path) -> Path:
    """Runs that a test may damage."""
    return Path(shutil.copytree(out, tmp_path / "runs"))


def run_of(out: Path) -> Path:
    (found,) = out.rglob("run.json")
    return found.parent


def references_of(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.rglob("reference.json"))


def test_the_command_plays_references_and_says_what_came_out(played: tuple[Path, Result]) -> None:
    out, result = played
    assert "reference 2/2 · 2 stages · agent seed 10001" in said(result)
    assert "request 1: class" in result.stdout
    for words in ("gap_forget", "js_excess", "erasure_index", "references", "floor", "not audited", "cost (E9)"):
        assert words in result.stdout, words
    assert [path.name for path in references_of(out)] == ["agent-10000", "agent-10001"]
    assert {path.name for path in references_of(out)[0].iterdir()} == {
        "predictions.parquet",
        "probes.parquet",
        "reference.json",
    }


def test_a_reference_answers_as_an_agent_that_plays_its_stage_from_the_start(out: Path, settings: Settings) -> None:
    made = clgym.make("CLIP-Erasure-v0", **settings)
    env = made.unwrapped
    assert isinstance(env, ContinualEnv)
    (_, second), (_, other) = stages(env, 0)
    assert second.fork > 0
    agent, event = make_agent(f"{AGENT}-v0", other, 10_001), other.reset(seed=0)[0]
    while other.position < second.stop:
        event, *_ = other.step(agent.act(event))
    log = other.scorer.predictions()
    whole = {name: column[np.isin(log["point"], second.points)] for name, column in log.items()}
    table = pd.read_parquet(references_of(out)[1] / "predictions.parquet")
    mine = table[np.isin(table["point"], second.points)]
    assert len(mine) > 50
    for name, column in whole.items():
        assert np.array_equal(mine[name], column, equal_nan=column.dtype.kind == "f"), name
    made.close()


def test_scores_of_the_run(out: Path) -> None:
    folder = run_of(out)
    first, second = results(folder, RunRecord.load(folder))
    assert (first.request, second.request, first.kind, second.goal) == (0, 1, "class", "counterfactual")
    # One event: all six samples of the class that goes, and four of each of the five others of both domains.
    assert (first.footnotes["forget_reads"], first.footnotes["retain_reads"]) == (6, 20)
    assert first.footnotes["seconds"] > 0
    assert first.footnotes["state_bytes_before"] == first.footnotes["state_bytes_after"] > 0


def test_the_dry_run_counts_events(settings: Settings) -> None:
    args = ("run", "CLIP-Erasure-v0", "--agent", AGENT, *with_(settings), "--dry-run")
    (run,) = json.loads(cli(*args, "--references", 3, "--json").stdout)["runs"]
    (alone,) = json.loads(cli(*args, "--json").stdout)["runs"]
    assert alone["parts"] == run["parts"][:1]
    # Two batches for each of four domains, and an event for each request; references have no requests. The first stage
    # ends with the third domain, the second parts from it after the first.
    assert [(part["times"], part["train"]) for part in run["parts"]] == [(1, 10), (3, 18), (3, 18)]
    assert run["parts"][0]["questions"] > 7 * 4 * 12
    shown = cli(*args, "--references", 3).stdout
    assert "requests 0, 1" in shown
    assert "1.8" in shown


@pytest.mark.parametrize(
    ("count", "words"),
    [(-1, "Expected 1 to 100 references; got -1"), (101, "Expected 1 to 100 references; got 101")],
)
def test_a_number_of_references_is_checked_before_a_run_is_played(
    settings: Settings, count: int, words: str, tmp_path: Path
) -> None:
    for more in ((), ("--dry-run",)):
        args = ("run", "CLIP-Erasure-v0", "--agent", AGENT, *with_(settings), "--references", count, *more)
        assert words in said(cli(*args, "--out", tmp_path, exit_code=2))
    assert not list(tmp_path.iterdir())


def test_references_of_a_stream_without_requests_are_refused_before_it_is_played(tmp_path: Path) -> None:
    args = ("run", "CLIP-MTIL-v0", "--agent", AGENT, "--with", "tasks=1", "--references", 1, "--out", tmp_path)
    assert "Expected a stream in which data must be forgotten" in said(cli(*args, exit_code=2))
    assert not list(tmp_path.iterdir())


def test_references_that_are_there_are_not_played_again(copy: Path, settings: Settings) -> None:
    args = ("run", "CLIP-Erasure-v0", "--agent", AGENT, *with_(settings), "--out", copy, "--resume")
    before = [(path / "reference.json").stat().st_mtime_ns for path in references_of(copy)]
    assert "reference" not in cli(*args, "--references", 2).stderr
    # A damaged one is, and only that.
    (references_of(copy)[0] / "probes.parquet").write_bytes(b"")
    notes = cli(*args, "--references", 2).stderr
    assert "reference 1/2" in notes
    assert "reference 2/2" not in notes
    after = [(path / "reference.json").stat().st_mtime_ns for path in references_of(copy)]
    assert (before[0] != after[0], before[1]) == (True, after[1])


def test_erasure_prints_and_returns_every_number(out: Path) -> None:
    (run,) = json.loads(cli("erasure", out, "--json").stdout)["runs"]
    assert run["folder"] == str(run_of(out))
    first = run["requests"][0]
    assert {"gap_forget", "tug_of_war", "erasure_index"} <= set(first["metrics"])
    assert len(first["curves"]["erased"]) == 3
    shown = cli("erasure", out).stdout
    assert "Forget gap (E1)" in shown


def test_erasure_asks_for_references_that_are_missing(copy: Path) -> None:
    for path in references_of(copy):
        shutil.rmtree(path)
    words = said(cli("erasure", copy, exit_code=5))
    assert "Expected references of" in words
    assert "clgym run --resume --references 3" in words


def test_references_of_another_agent_are_refused(copy: Path) -> None:
    path = references_of(copy)[0] / "reference.json"
    held = json.loads(path.read_text())
    held["about"]["agent_settings"] = {"lr": 0.5}
    path.write_text(json.dumps(held))
    assert "got another agent_settings" in said(cli("erasure", copy, exit_code=5))
    path.write_text("{}")
    assert "Expected a reference in" in said(cli("erasure", copy, exit_code=5))


def test_a_run_without_its_answers_is_refused(copy: Path) -> None:
    folder = run_of(copy)
    record = RunRecord.load(folder)
    (folder / "probes.parquet").unlink()
    with pytest.raises(RecordError, match=r"Expected the file .*probes\.parquet; got none"):
        results(folder, record)


def test_a_run_on_a_stream_without_requests_has_no_results(tmp_path: Path) -> None:
    cli("run", "CLIP-MTIL-v0", "--agent", "zero_shot", "--with", "tasks=1", "--with", "steps=1", "--out", tmp_path)
    assert "Expected a run on a stream with requests to forget" in said(cli("erasure", tmp_path, exit_code=5))
    assert "Expected a run with a request to forget as if data had never come" in said(
        cli("audit", tmp_path, exit_code=5)
    )


def test_an_audit_is_kept_and_stands_in_table_and_picture(copy: Path, tmp_path: Path) -> None:
    result = cli("audit", copy, "--json")
    (run,) = json.loads(result.stdout)["runs"]
    assert [one["request"] for one in run["requests"]] == [0, 1]
    for one in run["requests"]:
        assert one["same"]
        assert one["traces"] == []  # it stores nothing
        assert set(one["probes"]) == {"few", "full"}
        assert 0 <= min(one["recovery"]) <= max(one["recovery"]) <= 1
        assert len(one["relearn"][0]) == min(one["steps"][0], 60) + 1
    folder = run_of(copy)
    assert kept(folder) == {one["request"]: one for one in run["requests"]}
    # The best before the request is of what the run said.
    record = RunRecord.load(folder)
    curve = results(folder, record)[0].curves["erased"][0]
    with_env = clgym.make("CLIP-Erasure-v0", **record.scenario_settings)
    env = with_env.unwrapped
    assert isinstance(env, ContinualEnv)
    env.reset(seed=0)
    assert run["requests"][0]["best"] == max(curve[: point_of(env.lifetime, 0)])
    with_env.close()
    shown = cli("erasure", copy).stdout
    assert "not audited" not in shown
    drawn = cli("plot", copy, "--out", tmp_path / "plots").stdout
    assert {"erasure.png", "relearning.svg", "divergence.png", "matrix.png"} <= {
        Path(line).name for line in drawn.splitlines()
    }


def test_an_audit_refuses_an_agent_that_answers_otherwise(out: Path) -> None:
    folder = run_of(out)
    record = RunRecord.load(folder)
    made = clgym.make("CLIP-Erasure-v0", **record.scenario_settings)
    env = made.unwrapped
    assert isinstance(env, ContinualEnv)
    env.reset(seed=0)
    run, point = read_answers(folder, env.lifetime), point_of(env.lifetime, 0)
    player = _Player(record, "cpu", "fp32")
    assert set(player.states(env, 0, {}, {point}, run)) == {point}
    run.right[point] = 1 - run.right[point]
    with pytest.raises(RecordError, match="Expected the agent to answer as in the run, played again"):
        player.states(env, 0, {}, {point}, run)
    made.close()


def test_a_removal_needs_no_references(settings: Settings, tmp_path: Path) -> None:
    args = ("run", "CLIP-Erasure-v0", "--agent", AGENT, *with_(settings | {"goal": "removal"}), "--out", tmp_path)
    assert "Expected a stream in which data must be forgotten" in said(cli(*args, "--references", 1, exit_code=2))
    cli(*args, "--quiet")
    shown = cli("erasure", tmp_path).stdout
    assert "H-mean" in shown
    assert "Forget gap" not in shown
    folder = run_of(tmp_path)
    assert [place.name for place, _ in figures({folder: RunRecord.load(folder)})] == ["erasure"]


def test_reference_seeds_are_nobody_elses() -> None:
    assert reference_seeds(0, 3) == [10_000, 10_001, 10_002]
    assert reference_seeds(7, 1) == [10_700]
    assert not set(reference_seeds(0, 100)) & set(reference_seeds(1, 100))


def test_questions_of_a_stream_are_the_same_for_run_and_reference(out: Path) -> None:
    def asked(folder: Path) -> set[tuple[int, int, int]]:
        table = pd.read_parquet(folder / "predictions.parquet", columns=["point", "task", "question"])
        return set(table.itertuples(index=False, name=None))

    reference = asked(references_of(out)[0])
    assert {point for point, _, _ in reference} == {3, 4, 5, 6}
    assert reference < asked(run_of(out))
