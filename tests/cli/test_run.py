"""``clgym run``: what it writes, shows and refuses."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from clgym.record import RunRecord
from tests.cli.conftest import SMALL
from tests.conftest import cli, loaded, said


def test_run_writes_records_that_load(runs: Path) -> None:
    folders = sorted(path.parent for path in runs.rglob("run.json"))
    assert len(folders) == 4
    for folder in folders:
        record = RunRecord.load(folder)
        assert record.status == "finished"
        assert record.scenario_settings == {"steps": 1, "tasks": 2}
        assert record.matrix.shape == (3, 2)


def test_run_shows_matrix_metrics_and_record(tmp_path: Path) -> None:
    result = cli("run", "CLIP-MTIL-v0", "--agent", "zero_shot", *SMALL, "--out", tmp_path)
    assert "0 (zero-shot)" in result.stdout
    assert "2 objects" in result.stdout
    assert "mtil_transfer" in result.stdout
    assert f"record: {tmp_path}" in result.stdout
    assert "[1/1] CLIP-MTIL-v0 · zero_shot-v0 · seed 0" in result.stderr


def test_run_refuses_what_is_there_before_anything_is_played(runs: Path) -> None:
    again = ("run", "CLIP-MTIL-v0", "--agent", "zero_shot", "--agent", "replay", *SMALL, "--out", runs)
    result = cli(*again, exit_code=2)
    assert result.stdout == ""
    assert "Add --resume to continue or keep them, or --overwrite to replace them." in said(result)
    assert not list(runs.rglob("replay*"))


def test_run_resume_keeps_what_is_finished(runs: Path) -> None:
    result = cli("run", "CLIP-MTIL-v0", "--agent", "zero_shot", *SMALL, "--out", runs, "--resume", "--quiet")
    assert result.stdout.split("\n")[0].endswith("seed-0")
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--set", "ensembl=1"], "Did you mean 'ensemble'?"),
        (["--set", "ensemble=maybe"], "Expected ensemble as true or false; got 'maybe'."),
        (["--with", "tasks=1.5"], "Expected tasks as a whole number; got '1.5'."),
        (["--with", "tasks"], "Expected KEY=VALUE; got 'tasks'."),
        (["--with", "order=III"], "Expected order 'I' or 'II'; got 'III'."),
        (["--seeds", "2-1"], "Expected seeds as numbers and rising ranges; got '2-1'"),
        (["--device", "tpu"], "got 'tpu'"),
        (["--resume", "--overwrite"], "Expected --resume or --overwrite; got both."),
        (["--agent", "codira"], "Did you mean 'codyra-v0'?"),
    ],
)
def test_run_says_what_is_wrong_with_a_setting(args: list[str], words: str, tmp_path: Path) -> None:
    result = cli("run", "CLIP-MTIL-v0", "--agent", "zero_shot", "--out", tmp_path, *args, exit_code=2)
    assert said(result).count("Error: ") == 1
    assert words in said(result)
    assert "Traceback" not in result.stderr


def test_interrupt_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clgym.jobs.run", interrupted)
    args = ["run", "CLIP-MTIL-v0", "--agent", "zero_shot", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["clgym", *args, "--overwrite"])
    result = cli(*args, "--overwrite", exit_code=128 + signal.SIGINT)
    assert f"clgym run CLIP-MTIL-v0 --agent zero_shot --out {tmp_path} --resume" in said(result)


def test_probes_and_looks_inside_come_out_of_every_verb(tmp_path: Path) -> None:
    probed = ("--with", "tasks=2", "--with", "steps=12", "--probe-every", "1")
    result = cli("run", "CLIP-MTIL-v0", "--agent", "full_finetune", *probed, "--whitebox", "--out", tmp_path)
    inside = [
        *("min_accuracy", "worst_case_accuracy", "stability_gap", "windowed_forgetting", "windowed_plasticity"),
        *("learning_curve_area", "negative_flip_rate"),
    ]
    looks = ["effective_rank", "stable_rank", "srank", "dormant_units", "weight_norm"]
    assert [id for id in (*inside, *looks, "untrained") if id not in result.stdout] == []
    (folder,) = (path.parent for path in tmp_path.rglob("run.json"))
    record = RunRecord.load(folder)
    assert [id for id in inside if record.metrics.get(id) is None] == []
    again = loaded("score", folder, "--columns", ",".join([*inside, *looks]))
    (run,), (row,) = again["runs"], again["table"]
    for id in inside:
        assert run["metrics"][id] == record.metrics[id] == row["metrics"][id]["mean"], id
    for id in looks:
        assert row["metrics"][id]["mean"] == record.resources["whitebox"][-1][id], id
    assert len(record.resources["whitebox"]) == 3


def test_an_agent_that_shows_nothing_says_so(tmp_path: Path) -> None:
    result = cli("run", "CLIP-MTIL-v0", "--agent", "random_guess", *SMALL, "--whitebox", "--out", tmp_path)
    assert "This agent offers no look inside: no white-box columns." in result.stdout
