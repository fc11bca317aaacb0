"""``clgym plot``: pictures of runs, and their paths."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import cli

PICTURE = b"\x89PNG"


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
