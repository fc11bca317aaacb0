import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import clgym
from clgym.__main__ import app
from clgym.columns import columns
from clgym.console import percent
from clgym.doctor import Finding
from clgym.errors import SettingError
from clgym.grid import seeds
from clgym.metrics import METRICS
from clgym.record import RunRecord
from clgym.settings import arguments, parsed
from clgym.whitebox import WHITEBOX

SMALL = ("--with", "tasks=2", "--with", "steps=1")
PICTURE = b"\x89PNG"


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


@pytest.fixture(scope="module")
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


def test_errors_are_json_where_it_is_asked_for(tmp_path: Path) -> None:
    found = loaded("run", "CLIP-MTL-v0", "--agent", "zero_shot", "--out", tmp_path, exit_code=2)
    assert found["error"]["kind"] == "NotRegisteredError"
    assert "Did you mean 'CLIP-MTIL-v0'?" in found["error"]["message"]


def test_what_is_not_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("clgym.doctor.examine", broken)
    assert isinstance(CliRunner().invoke(app, ["doctor"]).exception, ZeroDivisionError)


def test_interrupt_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clgym.jobs.run", interrupted)
    args = ["run", "CLIP-MTIL-v0", "--agent", "zero_shot", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["clgym", *args, "--overwrite"])
    result = cli(*args, "--overwrite", exit_code=128 + signal.SIGINT)
    assert f"clgym run CLIP-MTIL-v0 --agent zero_shot --out {tmp_path} --resume" in said(result)


def test_list() -> None:
    result = cli("list")
    assert "CLIP-MTIL-v0" in result.stdout
    assert "codyra-v0" in result.stdout
    found = loaded("list")
    assert {"id", "title", "kind", "paper", "with"} == set(found["agents"][0])
    assert list(loaded("list", "--agents")) == ["agents"]
    assert list(loaded("list", "--scenarios")) == ["scenarios"]
    assert {row["kind"] for row in loaded("list", "--kind", "replay")["agents"]} == {"replay"}
    assert "Expected a registered kind; got 'x'." in said(cli("list", "--kind", "x", exit_code=2))


def test_list_of_a_kind_says_how_a_scenario_is_made_so() -> None:
    online = loaded("list", "--kind", "online")
    assert online["agents"] == []
    assert {row["id"] for row in online["scenarios"]} >= {"CLIP-MTIL-v0", "CLIP-XTAIL-v0", "ViT-CIFAR100-CIL-v0"}
    assert {row["with"]["online"] for row in online["scenarios"]} == {"--with passes=1"}
    assert "--with passes=1" in cli("list", "--kind", "online").stdout
    assert "--with" not in cli("list", "--kind", "task-incremental").stdout
    domains = {row["id"] for row in loaded("list", "--kind", "domain-incremental")["scenarios"]}
    assert "ViT-CIFAR100-CIL-v0" in domains
    assert "CLIP-MTIL-v0" not in domains
    nothing = cli("list", "--kind", "continual-pre-training", "--agents").stdout
    assert "Nothing listed is continual-pre-training or can be made so." in nothing


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


def test_info_of_an_agent() -> None:
    found = loaded("info", "codyra")
    assert found["id"] == "codyra-v0"
    rank = next(setting for setting in found["settings"] if setting["name"] == "r")
    assert rank == {"name": "r", "default": 16, "description": "Rank of every adapter before pruning."}
    shown = cli("info", "codyra").stdout
    assert "arXiv:2412.01004" in shown
    assert "Rank of every adapter before pruning." in shown


def test_info_of_a_scenario_and_of_nothing() -> None:
    assert "licences" in cli("info", "CLIP-MTIL").stdout
    result = cli("info", "CLIP-MTLI-v0", exit_code=2)
    assert "Expected a registered scenario or agent; got 'CLIP-MTLI-v0'. Did you mean" in said(result)


def test_every_setting_is_described() -> None:
    found = loaded("list")
    for row in [*found["scenarios"], *found["agents"]]:
        for setting in loaded("info", row["id"])["settings"]:
            assert setting["description"].endswith("."), (row["id"], setting["name"])


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


def test_probes_and_looks_inside_come_out_of_every_verb(tmp_path: Path) -> None:
    probed = ("--with", "tasks=2", "--with", "steps=12", "--probe-every", "1")
    result = cli("run", "CLIP-MTIL-v0", "--agent", "full_finetune", *probed, "--whitebox", "--out", tmp_path)
    inside = [
        *("min_accuracy", "worst_case_accuracy", "stability_gap", "windowed_forgetting", "windowed_plasticity"),
        *("learning_curve_area", "negative_flip_rate"),
    ]
    looks = ["effective_rank", "stable_rank", "srank", "dormant_units", "weight_norm"]
    assert [id for id in (*inside, *looks, "0 (before training)") if id not in result.stdout] == []
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


def test_plot_writes_png_and_svg_and_prints_their_paths(runs: Path, tmp_path: Path) -> None:
    first = runs / "CLIP-MTIL-v0,steps=1,tasks=2" / "sequential_lora-v0"
    paths = [Path(line) for line in cli("plot", first, "--out", tmp_path).stdout.splitlines()]
    assert [path.name for path in paths].count("matrix.png") == 2
    assert {path.suffix for path in paths} == {".png", ".svg"}
    assert all(path.read_bytes().startswith(PICTURE if path.suffix == ".png" else b"<?xml") for path in paths)
    assert sum("stability-plasticity" in path.name for path in paths) == 2


def test_plot_refuses_one_run_twice(runs: Path, one: Path, tmp_path: Path) -> None:
    result = cli("plot", runs, one, "--out", tmp_path, "--json", exit_code=2)
    assert "which are the same" in json.loads(result.stdout)["error"]["message"]


def test_explain() -> None:
    shown = cli("explain", "forgetting").stdout
    assert "max_{t=j..T-1} R[t,j] - R[T,j]" in shown
    assert "arXiv:1801.10112" in shown
    assert loaded("explain", "forgetting")["higher_is_better"] is False
    assert {metric["id"] for metric in loaded("explain")["metrics"]} == set(columns())
    assert set(METRICS) | set(WHITEBOX) | {"trainable", "state_bytes"} <= set(columns())
    assert all(id in cli("explain").stdout for id in columns())
    assert "exp(-sum_k p_k ln p_k)" in cli("explain", "effective_rank").stdout
    assert "range    [0, inf], lower is better" in cli("explain", "stored").stdout
    assert "Did you mean 'forgetting'?" in said(cli("explain", "forgeting", exit_code=2))


def test_conformance_passes_and_shows_the_peers() -> None:
    found = loaded("conformance")
    assert found["passed"]
    assert found["failures"] == []
    shown = cli("conformance").stdout
    assert "all as expected" in shown
    assert "forgetting_first_to_last" in shown


def test_conformance_fails_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    from clgym.conformance import Failure

    monkeypatch.setattr("clgym.conformance.check", lambda: [Failure("case", "last", "0.5", "0.6")])
    result = cli("conformance", exit_code=1)
    assert "1 differ" in result.stdout
    assert not loaded("conformance", exit_code=1)["passed"]


def test_download_check_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path))
    found = loaded("download", "CLIP-MTIL-v0", "--check")
    assert found["here"] == []
    assert len(found["missing"]) == 11
    assert "missing" in cli("download", "CLIP-MTIL-v0", "--check").stdout
    assert found["backbone"] == "ViT-B-16/openai"


def test_download_without_network_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**kwargs: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setenv("CLGYM_DATA", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    result = cli("download", "CLIP-MTIL-v0", exit_code=4)
    assert "got ConnectionError: no network. Check the network" in said(result)
    assert loaded("download", "CLIP-MTIL-v0", exit_code=4)["error"]["kind"] == "SourceMissingError"


def test_download_of_weights_without_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("clgym.fetch.download", lambda names, progress: None)
    monkeypatch.setattr("clgym.fetch.download_backbone", offline)
    result = cli("download", "CLIP-MTIL-v0", exit_code=4)
    assert "Expected to fetch ViT-B-16/openai; got ConnectionError: no network." in said(result)


def test_doctor_finds_this_installation_healthy() -> None:
    found = loaded("doctor")
    assert found["healthy"]
    names = {finding["name"]: finding["mark"] for finding in found["findings"]}
    assert names["embedded weights"] == names["self-test"] == names["gymnasium ids"] == "ok"
    assert all(finding["fix"] for finding in found["findings"] if finding["mark"] != "ok")


def test_doctor_exits_with_1_on_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Finding("torch", "fail", "not installed", "pip install 'torch[x]'")
    monkeypatch.setattr("clgym.doctor.examine", lambda: iter([broken]))
    assert "pip install 'torch[x]'" in cli("doctor", exit_code=1).stdout


def test_doctor_outlives_a_check_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from clgym import doctor

    monkeypatch.setattr("clgym.worlds.tiny_clip.load", lambda: 1 / 0)
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["weights"].mark == "fail"
    assert "ZeroDivisionError" in found["weights"].found


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("8", 16, 8),
        ("1", 0.5, 1.0),
        (".001", 0.5, 0.001),
        ("true", False, True),
        ("True", False, True),
        ("2", "I", "2"),
        ('"I"', "II", "I"),
        ("[1, 2]", (3, 4), (1, 2)),
        ("(0.9, 1)", (0.9, 0.99), (0.9, 1.0)),
        ('{"a": 1}', None, {"a": 1}),
        ("some words", None, "some words"),
    ],
)
def test_values_of_settings(text: str, default: Any, value: Any) -> None:
    found = parsed("x", text, default)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "default", "words"),
    [
        ("true", 16, "Expected x as a whole number; got 'true'. Write it like the default, x=16."),
        ("1.0", 16, "Expected x as a whole number; got '1.0'."),
        ("NaN", 0.5, "Expected x as a number; got 'NaN'."),
        ("1", True, "Expected x as true or false; got '1'. Write it like the default, x=true."),
        ("3", (1, 2), "Expected x as a list; got '3'. Write it like the default, x=[1, 2]."),
        ('["a"]', (1, 2), "Expected x as a whole number; got 'a'."),
    ],
)
def test_values_of_the_wrong_type_are_refused(text: str, default: Any, words: str) -> None:
    with pytest.raises(SettingError) as caught:
        parsed("x", text, default)
    assert str(caught.value).startswith(words)


def test_seeds() -> None:
    assert seeds("0-2") == (0, 1, 2)
    assert seeds("5, 0,1-2,1") == (5, 0, 1, 2)
    for text in ("", "-1", "1-", "a", "1,,2"):
        with pytest.raises(SettingError, match="Expected seeds as numbers and rising ranges"):
            seeds(text)


def test_arguments_of_a_docstring_without_any() -> None:
    assert arguments("Do it.") == {}


def test_percent_of_rounded_and_missing() -> None:
    assert [percent(x) for x in (0.9994, 0.99951, float(np.nan))] == ["99.9", "100", "-"]
