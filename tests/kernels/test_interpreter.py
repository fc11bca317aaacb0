"""Runs ``interpreted.py`` where Triton interprets: the mode is fixed when a kernel is defined."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("interpreted.py")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_every_kernel_does_what_its_op_does(tmp_path: Path) -> None:
    # One thread: numpy's would fight torch's over every small product.
    environment = {
        **os.environ,
        **{"TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path), "CLGYM_BACKEND": "auto"},
        **{"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(FILE)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=FILE.parents[2])
    assert run.returncode == 0, run.stdout
    written = [n for n in ast.parse(FILE.read_text(encoding="utf-8")).body if getattr(n, "name", "")[:5] == "test_"]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None
    assert int(passed[1]) >= len(written)
    assert "skipped" not in run.stdout
