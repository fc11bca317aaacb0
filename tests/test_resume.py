"""A run that is killed with SIGKILL at random moments and resumed ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clgym
from clgym import checkpoint
from clgym.events import Event, Query, TaskStart, Train
from clgym.learner import Learner
from clgym.record import RunRecord
from clgym.runner import folder_of, run

SCENARIO = "CLIP-MTIL-v0"
STREAM = {"tasks": 3, "steps": 6}
KILLS = {"replay": 12, "codyra": 8}
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked and killed")


def play(agent: str, out: Path, *, stream: dict[str, Any] = STREAM, resume: bool = False) -> RunRecord:
    # CUDA does not survive a fork.
    return run(SCENARIO, agent, 1, scenario_settings=stream, out=out, checkpoint_seconds=0, resume=resume, device="cpu")


def torture(agent: str, kills: int, out: Path) -> None:
    """Play once undisturbed; then in many lives, each killed after a random while, and to the end.

    Every life is forked from this process, which has imported and drawn everything already. A run that gets to its
    end before it is killed is followed by another, so that a fast machine changes nothing but their number.
    """
    torch.set_num_threads(1)
    seconds = play(agent, out / "whole").resources["seconds"]
    rng = random.Random(kills)
    started, done, runs = time.monotonic(), 0, 1
    while done < kills:
        folder = out / f"killed-{runs}"
        life = os.fork()
        if not life:
            play(agent, folder, resume=True)
            os._exit(0)
        time.sleep(rng.uniform(0.05, 3 * seconds / kills))
        os.kill(life, signal.SIGKILL)
        _, status = os.waitpid(life, 0)
        if os.WIFSIGNALED(status):
            done += 1
            position = max((path.name[:9] for path in folder.rglob("*.safetensors")), default="none")
            drafts = len(list(folder.rglob("*.draft")))
            print(f"{agent}: kill {done} of run {runs} after event {position}, {drafts} drafts", flush=True)
        elif os.WEXITSTATUS(status):
            raise SystemExit(f"Expected a life to end well or by a kill; got status {status}.")
        else:
            runs += 1
    play(agent, out / f"killed-{runs}", resume=True)
    print(f"{agent}: {seconds:.1f} s undisturbed, {time.monotonic() - started:.1f} s with kills", flush=True)


def test_kills_at_random_moments(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=ALONE, timeout=300, check=False)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("kill ") == sum(KILLS.values()) == 20
    for agent in KILLS:
        whole, *killed = sorted((tmp_path / agent).iterdir(), key=lambda path: path.name != "whole")
        assert killed
        for folder in killed:
            same(whole, folder)


def same(whole: Path, killed: Path) -> None:
    """Check that two runs left the same logs, the same numbers, and nothing else."""
    (folder,) = (path.parent.relative_to(whole) for path in whole.rglob("run.json"))
    for name in ("predictions.parquet", "events.parquet"):
        assert (whole / folder / name).read_bytes() == (killed / folder / name).read_bytes()
    expected, found = RunRecord.load(whole / folder), RunRecord.load(killed / folder)
    assert found.R == expected.R
    assert found.metrics == expected.metrics
    assert found.fingerprints == expected.fingerprints
    assert found.resources["samples"] == expected.resources["samples"]
    assert found.resources["per_task"] == expected.resources["per_task"]
    assert {path.name for path in (killed / folder).iterdir()} == {*found.files, "run.json"}


SCRIPT = """
import sys, clgym
stream = {"tasks": 1, "steps": 4}
clgym.run("CLIP-MTIL-v0", "replay", 1, scenario_settings=stream, out=sys.argv[1], resume=True, device="cpu")
"""


def test_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed")]
    with subprocess.Popen(command, env=ALONE) as process:
        # As soon as there is something to continue from.
        deadline = time.monotonic() + 120
        while not list(tmp_path.rglob("*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.rglob("*.safetensors"))
    subprocess.run(command, env=ALONE, timeout=120, check=True)
    play("replay", tmp_path / "whole", stream={"tasks": 1, "steps": 4})
    same(tmp_path / "whole", tmp_path / "killed")


def learner(seed: int = 0) -> tuple[Any, Learner]:
    env = clgym.make(SCENARIO, tasks=2, steps=6)
    agent = clgym.make_agent("sequential_lora", env, seed, device="cpu")
    assert isinstance(agent, Learner)
    return env, agent


def test_a_learner_goes_on_in_the_middle_of_a_task(tmp_path: Path) -> None:
    env, agent = learner()
    events: list[Event] = []
    event, _ = env.reset(seed=0)
    while len([e for e in events if isinstance(e, Train)]) < 6 + 4:
        events.append(event)
        event, *_ = env.step(np.zeros(len(event.inputs), np.int64) if isinstance(event, Query) else None)
    taught = [e for e in events if not isinstance(e, Query)]
    query = next(e for e in events if isinstance(e, Query))
    teach(agent, taught[:-2])
    checkpoint.write(tmp_path, 0, {"agent": agent.state_dict()})
    states = checkpoint.read(tmp_path)
    assert states is not None
    _, other = learner(seed=7)
    teach(other, taught[:3])  # state that must not survive
    other.load_state_dict(states["agent"])
    assert other.step == agent.step == 2
    assert other.steps == agent.steps
    assert isinstance(other.task, TaskStart)
    assert other.task == agent.task
    compare(agent, other)
    teach(agent, taught[-2:])
    teach(other, taught[-2:])
    compare(agent, other)
    assert np.array_equal(np.asarray(agent.act(query)), np.asarray(other.act(query)))


def teach(agent: Learner, events: Sequence[Event]) -> None:
    for event in events:
        agent.act(event)


def compare(a: Learner, b: Learner) -> None:
    """Check optimizer moments, adapters, generator and schedule bit by bit."""
    assert a.optimizer is not None
    assert b.optimizer is not None
    mine, theirs = a.optimizer.state_dict(), b.optimizer.state_dict()
    assert mine["state"].keys() == theirs["state"].keys() == {0}
    for name, value in mine["state"][0].items():
        assert value.dtype == theirs["state"][0][name].dtype
        assert torch.equal(value, theirs["state"][0][name])
    assert mine["state"][0]["exp_avg_sq"].abs().sum() > 0
    assert torch.equal(a.generator.get_state(), b.generator.get_state())
    one, two = a.state_dict(), b.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(v, two[k]) for k, v in one.items() if isinstance(v, torch.Tensor))


def test_a_finished_run_is_returned_at_once(tmp_path: Path) -> None:
    small = {"tasks": 1, "steps": 1}
    record = run(SCENARIO, "zero_shot", out=tmp_path, scenario_settings=small)
    assert (tmp_path / folder_of(record) / "matrix.png").read_bytes().startswith(b"\x89PNG")
    started = time.monotonic()
    assert run(SCENARIO, "zero_shot", out=tmp_path, scenario_settings=small, resume=True) == record
    assert time.monotonic() - started < 1


if __name__ == "__main__":
    for agent, kills in KILLS.items():
        torture(agent, kills, Path(sys.argv[1]) / agent)
