"""The benchmarks run, on tiny sizes; what they check is checked, and what they measure is not looked at."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import called_here

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield what imports a benchmark as Python finds it, beside its siblings; leave the number of threads alone."""
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    torch.set_num_threads(threads)


def test_ratios_on_a_cpu(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = load("kernels_cpu").main(["--quick", "--only", "C1", "C3", "C4", "C5", "C8", "C9", "C10"])
    assert [row.id for row in rows] == [
        "C1",
        "C1",
        "C2",
        "C2",
        "C3",
        "C3",
        "C3",
        "C3",
        "C4",
        "C4",
        "C5",
        "C8",
        "C9",
        "C9",
        "C10",
        "C10",
    ]
    assert all(row.value > 0 for row in rows)
    shown = capsys.readouterr()
    assert "PEFT over ours, whole step, r=16" in shown.out
    assert f"torch {torch.__version__.partition('+')[0]}" in shown.out
    assert "measuring C1 and C2" in shown.err


@pytest.mark.slow
def test_a_whole_run_against_a_bare_loop(load: Any) -> None:
    (row,) = load("kernels_cpu").main(["--quick", "--only", "C6"])
    assert row.value > 0


def test_what_is_not_installed_is_not_measured(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = load("kernels_cpu")
    monkeypatch.setattr(cpu.importlib.util, "find_spec", lambda name: None)
    rows = cpu.c7(1, True)
    assert [(row.value, row.verdict) for row in rows] == [(None, "avalanche-lib is not installed")] * 2


def test_the_job_of_c7_in_clgym(load: Any) -> None:
    """Five tasks of 100 images: each is trained on once, and 50 questions a task are asked before and after each."""
    job, cpu = load("avalanche_job"), load("kernels_cpu")
    run = job.by_clgym(cpu.Epoch(cpu.noise(500), job.TASKS, 50))
    assert job.work_of("cnn", run) == (500, 6 * 5 * 50)


def test_growth(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    growth = load("growth")
    rows = growth.main(["--quick"])
    assert [row[0] for row in rows] == [*growth.FAMILIES, "A/A"]
    assert all(float(figure) > 0 for row in rows for figure in row[1:3])
    assert "gated stack" in capsys.readouterr().out
    # A layer of 32 by 32, four of them a block, and two of 32 by 128; rank 4, fp32.
    assert {row[0]: row[-1] for row in rows}["gated stack"] == f"{4 * 4 * (4 * 64 + 2 * 160):,}"


@pytest.mark.parametrize(
    ("value", "again", "verdict"), [(1.1, 1.0, "met"), (1.2, 1.0, "missed"), (1.2, 0.9, "missed within A/A")]
)
def test_a_goal_is_missed_by_more_than_the_noise(load: Any, value: float, again: float, verdict: str) -> None:
    row = load("rounds").Row
    assert row("C1", "", value, again, at_most=1.15).verdict == verdict
    assert row("C2", "", 1 / value, again, at_least=1 / 1.15).verdict == verdict
    assert row("C1", "", value, again).verdict == ""


def test_a_ratio_is_the_median_of_rounds(load: Any) -> None:
    rounds = load("rounds")
    assert rounds.ratio({"a": [2.0, 9.0, 3.0], "b": [1.0, 1.0, 2.0]}, "a", "b") == 2.0
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = rounds.measured(variants, 2)
    assert calls == ["b", "a", "a", "b", "b", "a"], "a warm-up, then each round the other way round"
    assert {name: len(found) for name, found in times.items()} == {"a": 2, "b": 2}


def test_a_table_goes_between_its_markers(load: Any, tmp_path: Path) -> None:
    rounds, page = load("rounds"), tmp_path / "page.md"
    page.write_text("Before.\n<!-- growth -->\nold\n<!-- end of growth -->\nAfter.\n")
    chosen = rounds.arguments("", 3, ["C1"], ["--page", str(page)])
    rounds.publish(chosen, "growth", ("a", "b"), [("1", "2")])
    written = page.read_text()
    assert written.startswith("Before.\n<!-- growth -->\n")
    assert written.endswith("\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n<!-- end of growth -->\nAfter.\n")
    assert rounds.hardware() in written
    with pytest.raises(ValueError, match=r"Expected the markers <!-- kernels_cpu --> and <!-- end of kernels_cpu -->"):
        rounds.fill(page, "kernels_cpu", "")


@pytest.mark.parametrize("name", ["kernels_cpu", "kernels_gpu", "growth"])
def test_the_page_on_speed_has_a_place_for_every_table(load: Any, tmp_path: Path, name: str) -> None:
    page = tmp_path / "speed.md"
    page.write_text((BENCHMARKS.parent / "docs/speed.md").read_text(encoding="utf-8"), encoding="utf-8")
    load("rounds").fill(page, name, "these words")
    assert f"<!-- {name} -->\nthese words\n<!-- end of {name} -->\n" in page.read_text(encoding="utf-8")


def test_figures_of_a_quick_run_go_on_no_page(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("growth").main(["--quick", "--page", "docs/speed.md"])
    assert "Expected --page or --quick; got both." in capsys.readouterr().err


def test_without_a_gpu_the_gpu_ratios_say_so(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as refused:
        load("kernels_gpu").main(["--only", "G1"])
    # A process that ends with words ends with code 1.
    assert str(refused.value.code).startswith("Expected a CUDA device; got none that torch sees. Run this where")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_jobs_of_the_gpu_check_themselves_and_run(load: Any) -> None:
    """On a CPU, where plain torch stands in for the kernels: what is timed on a GPU is this, at its own sizes."""
    jobs = load("gpu_jobs")
    tiny = jobs.TINY
    for shape in (tiny.small, tiny.large):
        assert [len(work()) for work in jobs.linear_job(tiny, shape, 4).values()] == [1, 1, 4, 4, 3]
    made = [jobs.whole_job(*jobs.vit(tiny)), jobs.whole_job(*jobs.llama(tiny), jobs.BLOCK, jobs.last_states)]
    made += [{name: build() for name, build in jobs.memory_job(tiny).items()}, jobs.gate_job(tiny)]
    for work in (work for job in made for work in job.values()):
        work()


def test_thin_kernels_are_counted_by_what_they_must_move(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 72 to 80 wide, 50 tokens, rank 4: bf16 but for A and B, and their gradients, in fp32."""
    from clgym.kernels import lora_linear as kernel

    def across(s: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return s.float().T @ x.float()

    monkeypatch.setattr(kernel, "shrink", lambda x, A: x @ A.to(x.dtype).T)
    monkeypatch.setattr(kernel, "expand", lambda s, B: s @ B.to(s.dtype))
    monkeypatch.setattr(kernel, "backward_up", lambda dy, B, s: (dy @ B.to(dy.dtype).T, across(s, dy)))
    monkeypatch.setattr(kernel, "backward_down", across)
    jobs = load("gpu_jobs")
    work, moved = jobs.thin_job(jobs.TINY, jobs.TINY.small, 4)
    assert {*work} == {*moved, "again"} == {*jobs.THIN, "copy", "again"}
    assert moved["copy"] == jobs.TINY.copied
    assert moved["shrink"] == moved["backward_down"] == 2 * 50 * 72 + 4 * 4 * 72 + 2 * 50 * 4
    assert moved["expand"] == 2 * 50 * 80 + 4 * 4 * 80 + 2 * 50 * 4
    assert moved["backward_up"] == 2 * 50 * 80 + 2 * 4 * 4 * 80 + 2 * 2 * 50 * 4
    for call in work.values():
        call()


def test_wrong_results_stop_the_measurement(load: Any) -> None:
    jobs, one = load("gpu_jobs"), torch.ones(2)
    jobs.check_close("this", [one.bfloat16()], [one.double()])
    with pytest.raises(AssertionError, match=r"Expected this within 0.01 of float64; got \[0.5\]"):
        jobs.check_close("this", [1.5 * one], [one.double()])
    with pytest.raises(AssertionError, match="nan"):
        jobs.check_close("this", [one * torch.nan], [one.double()])


def test_the_page_on_erasure_has_a_place_for_every_comparison(load: Any, tmp_path: Path) -> None:
    page, sections = tmp_path / "erasure.md", load("erasure").SECTIONS
    page.write_text((BENCHMARKS.parent / "docs/erasure.md").read_text(encoding="utf-8"), encoding="utf-8")
    for name in sections:
        load("rounds").fill(page, name, f"words of {name}")
    assert all(f"\nwords of {name}\n" in page.read_text(encoding="utf-8") for name in sections)


def test_erasers_stand_in_one_table_by_request(load: Any) -> None:
    erasure = load("erasure")
    runs = [
        {"requests": [{"request": 0, "subset": "", "metrics": {"h_mean": value, "acc_r": None}}]}
        for value in (0.5, 0.6, 0.7)
    ]
    rows = erasure.values({"a-v0": runs}, 0)
    assert rows["a-v0"]["h_mean"] == [0.5, 0.6, 0.7]
    # The interval is clgym.leaderboard.table.estimate's doctest.
    assert erasure.table(rows, ("h_mean", "acc_r"))[2:] == ["| a-v0 | 60.0 ± 24.8 | n/a |"]
    assert erasure.removal({"a-v0": runs}, ("h_mean",))[:6] == [
        "H-mean after each request:", "", "| agent | after 0 |", "| --- | ---: |", "| a-v0 | 60.0 ± 24.8 |", "",
    ]  # fmt: skip


def test_what_audits_found_stands_below(load: Any) -> None:
    audit = {
        "steps": [3, 61],
        "recovery": [0.5, 0.25],
        "probes": {},
        "traces": [{"kind": "id", "where": "memory", "count": 7}],
        "failed": ["W3"],
    }
    lines = load("erasure").audited({"a-v0": {"1": audit}}, 1)
    assert lines[-2:] == ["| a-v0 | 3 / never | 50.0 / 25.0 | - | 7 | W3 |", ""]


def test_erasers_are_played_for_the_page(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    erasure, page = load("erasure"), tmp_path / "erasure.md"
    alone = replace(erasure.SECTIONS["removal"], agents=("noop_eraser",), settings=("amount=50", "requests=1"))
    monkeypatch.setitem(erasure.SECTIONS, "removal", alone)

    monkeypatch.setattr(subprocess, "run", called_here)
    page.write_text("<!-- removal -->\n<!-- end of removal -->\n", encoding="utf-8")
    erasure.main(["--page", str(page), "--only", "removal", "--quick", "--seeds", "0", "--out", str(tmp_path)])
    assert "| noop_eraser-v0 |" in page.read_text(encoding="utf-8")
