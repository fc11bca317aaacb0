"""What importing costs: names are cheap, and what is heavy waits for its first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "pandas", "matplotlib", "datasets", "open_clip", "timm", "sklearn", "pyarrow"}


def loaded(code: str) -> set[str]:
    """Return which of the heavy packages a fresh interpreter holds after some code."""
    tail = "\nimport sys; print('|'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code + tail], capture_output=True, text=True, check=True)
    return HEAVY & set(run.stdout.strip().split("|"))


@pytest.mark.parametrize(
    "code",
    [
        "import clgym",
        "import clgym; clgym.make, clgym.make_agent, clgym.Agent, clgym.Scenario, clgym.Task",
        "import clgym; from clgym.registry import entries; entries('agents'), entries('scenarios')",
        "import clgym; clgym.make('CLIP-MTIL-v0')",
        "import gymnasium, clgym; gymnasium.make('clgym/CLIP-MTIL-v0', tasks=2)",
        "import clgym; clgym.make('CLIP-MTIL-v0', tasks=2).reset(seed=0)",
        "import clgym.__main__",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert loaded(code) == set()


def test_what_is_public_is_there() -> None:
    import clgym

    assert all(hasattr(clgym, name) for name in clgym.__all__)
    assert clgym.__all__ == sorted(clgym.__all__)
    with pytest.raises(AttributeError, match="module 'clgym' has no attribute 'rum'"):
        _ = clgym.rum


def test_run_is_imported_on_first_use() -> None:
    assert "torch" in loaded("import clgym; clgym.run")
