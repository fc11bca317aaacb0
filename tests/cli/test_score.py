"""``clgym score``: the table, references and columns, and what does not agree with its predictions."""

from __future__ import annotations

from pathlib import Path

import pytest

from clgym.record import RunRecord
from tests.cli.conftest import SMALL
from tests.conftest import cli, loaded, said


def test_score_agrees_and_gives_the_table(runs: Path) -> None:
    found = loaded("score", runs)
    assert len(found["runs"]) == 4
    for run in found["runs"]:
        assert run["R"] == RunRecord.load(Path(run["folder"])).R
    assert [row["seeds"] for row in found["table"]] == [[0, 1], [0, 1]]
    result = cli("score", runs)
    assert "n=2" in result.stdout
    assert "±" in result.stdout
    assert "4 runs agree with the predictions." in result.stderr


def test_score_of_one_run_shows_its_matrix(one: Path) -> None:
    shown = cli("score", one).stdout
    assert "0 (zero-shot)" in shown
    assert "Forgetting (F)" in shown


def test_score_against_a_joint_run(one: Path, tmp_path: Path) -> None:
    loaded("run", "CLIP-MTIL-v0", "--agent", "joint", *SMALL, "--out", tmp_path / "joint")
    (run,) = loaded("score", one, "--joint", tmp_path / "joint")["runs"]
    (folder,) = (path.parent for path in (tmp_path / "joint").rglob("run.json"))
    own, joint = (RunRecord.load(f).matrix[1:].diagonal() for f in (one, folder))
    assert run["metrics"]["intransigence"] == pytest.approx((joint - own).mean())
    assert "Intransigence" in cli("score", one, "--joint", tmp_path / "joint").stdout


def test_score_against_a_joint_run_of_another_stream(runs: Path, one: Path) -> None:
    other = runs / "CLIP-MTIL-v0,steps=1,tasks=2" / "zero_shot-v0" / "seed-1"
    result = cli("score", one, "--joint", other, exit_code=5)
    assert "Expected the runs of one reference agent on the stream of CLIP-MTIL-v0 with seed 0 under" in said(result)
    assert "got none. Run joint with that seed and those settings, and pass its folder." in said(result)


def test_score_against_single_task_runs(runs: Path, one: Path, tmp_path: Path) -> None:
    # Any agent may stand in; sequential_lora on its first task is a fresh start.
    alone = runs / "CLIP-MTIL-v0,steps=1,tasks=2" / "sequential_lora-v0"
    (run,) = loaded("score", one, "--single", alone)["runs"]
    own, single = (RunRecord.load(f).matrix[1:].diagonal() for f in (one, alone / "seed-0"))
    assert run["metrics"]["plasticity_gap"] == pytest.approx((single - own).mean())
    assert run["metrics"]["plasticity_gap_trend"] == pytest.approx((single - own)[1] - (single - own)[0])
    assert run["metrics"]["forward_transfer_survey"] == pytest.approx((own - single)[1])
    # Among runs of several agents the usual one is taken, and none is guessed.
    result = cli("score", one, "--single", runs, exit_code=5)
    assert "got sequential_lora-v0, zero_shot-v0. Run single_task with that seed" in said(result)
    loaded("run", "CLIP-MTIL-v0", "--agent", "single_task", *SMALL, "--out", tmp_path)  # beside a copy of zero_shot
    (run,) = loaded("score", one, "--single", tmp_path)["runs"]
    usual = RunRecord.load(next(tmp_path.rglob("single_task*/seed-0"))).matrix[1:].diagonal()
    assert run["metrics"]["plasticity_gap"] == pytest.approx((usual - own).mean())


def test_references_stand_in_the_table(runs: Path) -> None:
    # Each agent is its own reference here, so there is no gap.
    for agent in ("zero_shot-v0", "sequential_lora-v0"):
        folder = runs / "CLIP-MTIL-v0,steps=1,tasks=2" / agent
        (row,) = loaded("score", folder, "--single", folder, "--joint", folder)["table"]
        assert list(row["metrics"])[-4:] == [
            "forward_transfer_survey",
            "intransigence",
            "plasticity_gap",
            "plasticity_gap_trend",
        ]
        assert row["metrics"]["plasticity_gap"]["mean"] == 0


def test_score_shows_chosen_columns(runs: Path) -> None:
    columns = "mtil_last,negative_flip_rate,state_bytes,trainable"
    rows = {row["agent"]: row for row in loaded("score", runs, "--columns", columns)["table"]}
    assert list(rows) == ["sequential_lora-v0", "zero_shot-v0"] or list(rows) == ["zero_shot-v0", "sequential_lora-v0"]
    assert all(list(row["metrics"]) == columns.split(",") for row in rows.values())
    assert rows["zero_shot-v0"]["metrics"]["trainable"]["mean"] == 0
    shown = cli("score", runs, "--columns", "mtil_last, trainable").stdout
    assert "mtil last" in shown
    assert "forgetting" not in shown
    assert "shares in %" in shown
    one = runs / "CLIP-MTIL-v0,steps=1,tasks=2" / "sequential_lora-v0" / "seed-0"
    shown = cli("score", one, "--columns", "trainable,negative_flip_rate").stdout
    assert f"{RunRecord.load(one).resources['per_task'][-1]['trainable']:,}" in shown
    assert "mtil_last" not in shown


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("mtil_lst", "Expected a registered metric or column; got 'mtil_lst'. Did you mean 'mtil_last'?"),
        (" , ", "Expected ids of columns parted by commas; got ' , '. See clgym explain."),
    ],
)
def test_score_refuses_columns_that_do_not_exist(runs: Path, columns: str, words: str) -> None:
    assert words in said(cli("score", runs, "--columns", columns, exit_code=2))


def test_score_names_the_file_that_does_not_agree(one: Path) -> None:
    record = RunRecord.load(one)
    rows = [list(row) for row in record.R]
    rows[2][0] = 0.123
    record.model_copy(update={"R": rows}).save(one)
    result = cli("score", one, exit_code=5)
    assert f"Expected {one / 'run.json'} to agree with predictions.parquet; got R[2, 0] = 0.123000" in said(result)


def test_score_refuses_another_stream(one: Path) -> None:
    record = RunRecord.load(one)
    record.model_copy(update={"fingerprints": {**record.fingerprints, "data": "0" * 64}}).save(one)
    assert "Expected the data with sha256 000000000000 that" in said(cli("score", one, exit_code=5))


def test_score_refuses_what_is_damaged_missing_or_unfinished(one: Path, tmp_path: Path) -> None:
    assert "Expected a run folder with run.json" in said(cli("score", tmp_path / "none", exit_code=5))
    record = RunRecord.load(one)
    (one / "predictions.parquet").write_bytes(b"PAR1")
    assert "with sha256" in said(cli("score", one, exit_code=5))
    record.model_copy(update={"files": {}}).save(one)
    assert "Expected predictions in" in said(cli("score", one, exit_code=5))
    (one / "predictions.parquet").unlink()
    assert "Expected the file" in said(cli("score", one, exit_code=5))
    record.model_copy(update={"status": "running", "files": {}}).save(one)
    assert "Expected a finished run; got" in said(cli("score", one, exit_code=5))
