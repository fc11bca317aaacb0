"""One run in a process of its own: threads and peak memory are its alone, and its death is nobody else's.

The two sides talk over pipes. The parent sends an order, then ``stop`` if it wants the run to end after the event
in hand; the child sends progress, then how it ended. A child whose parent is gone ends at once.
"""

from __future__ import annotations

import _thread
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, Literal, TextIO

from clgym.callbacks import Callback, Story
from clgym.env import ContinualEnv
from clgym.events import Event
from clgym.record import RunRecord
from clgym.settings import chosen

EVERY = 0.2  # seconds between two words on progress
STOP = b"stop\n"


@dataclass(frozen=True, slots=True)
class Order:
    """What a child is told; every value survives JSON.

    Attributes:
        out: Folder of all runs.
        device: As in :func:`clgym.run`.
        precision: As in :func:`clgym.run`.
        checkpoint_seconds: As in :func:`clgym.run`.
        threads: Threads it computes with.
        cwd: Folder that relative folders in settings refer to; where there is none, that of the parent.
        scenario: Scenario id.
        agent: Agent id.
        seed: Its seed.
        scenario_settings: ``KEY=JSON`` texts.
        agent_settings: ``KEY=JSON`` texts.
        path: Where in ``out`` the run will be.
        gpu: The GPU that it sees, as ``CUDA_VISIBLE_DEVICES`` names it; ``""`` for all that the parent sees.
    """

    out: str
    device: str
    precision: str
    checkpoint_seconds: float
    threads: int
    cwd: str
    scenario: str = ""
    agent: str = ""
    seed: int = 0
    scenario_settings: Sequence[str] = ()
    agent_settings: Sequence[str] = ()
    path: str = ""
    gpu: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the child; libraries read them as they are imported."""
        seen = {"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu else {}
        return {**os.environ, "OMP_NUM_THREADS": str(self.threads), **seen}

    @property
    def log(self) -> Path:
        """Where the child's log is."""
        return log_of(Path(self.out, self.path))


def log_of(folder: Path) -> Path:
    """Return where a run's log is: what it prints, and its traceback if it fails."""
    return folder / "log.txt"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        position: Events so far.
        length: Events in all.
        what: What it is doing.
        accuracy: Of the current round of questions, in [0, 1]; ``None`` while learning.
    """

    position: int
    length: int
    what: str
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run's process ended.

    Attributes:
        state: ``"finished"``; ``"failed"`` with an error; ``"stopped"`` as it was told to, with a checkpoint;
            or ``"died"``: it could not say.
        kind: Class of the error, or ``""``.
        error: What it says, or ``""``.
    """

    state: Literal["finished", "failed", "stopped", "died"]
    kind: str = ""
    error: str = ""


Tell = Callable[[Order, Progress | Ending], None]


class Player:
    """The parent's side: a child that plays one run.

    Args:
        order: What it is to play.
    """

    def __init__(self, order: Order) -> None:
        """Start the child; its log is appended to."""
        self._order = order
        order.log.parent.mkdir(parents=True, exist_ok=True)
        with order.log.open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "clgym.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=order.cwd if Path(order.cwd).is_dir() else None,
                env=order.environment,
                start_new_session=True,  # Ctrl-C is the parent's, which passes it on once
            )
        self._send(json.dumps(asdict(order)).encode() + b"\n")

    def follow(self, tell: Callable[[Progress], None]) -> Ending:
        """Pass progress on until the child has ended; return how it did."""
        assert self._child.stdout is not None
        ending = None
        for line in self._child.stdout:
            said = json.loads(line)
            if "state" in said:
                ending = Ending(**said)
            else:
                tell(Progress(**said))
        code = self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            pipe.close()
        if not self._order.log.stat().st_size:
            self._order.log.unlink()
        return ending or Ending("died", "WorkerError", _last_words(code))

    def stop(self) -> None:
        """Have the child write a checkpoint after the event in hand and end; said twice, it does not wait."""
        self._send(STOP)

    def kill(self) -> None:
        """End the child at once; its last checkpoint stands."""
        self._child.kill()

    def _send(self, words: bytes) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(words)
            self._child.stdin.flush()
        except (OSError, ValueError):
            pass  # it has ended already, which follow() tells


def _last_words(code: int) -> str:
    """Say what is known of a child that ended without a word."""
    if code < 0:
        name = signal.Signals(-code).name
        memory = " If memory ran out, play fewer runs at a time." if name == "SIGKILL" else ""
        return f"Expected a process that plays to the end; got one that {name} ended. Start the sweep again.{memory}"
    return f"Expected a process that plays to the end; got exit code {code}. Read its log."


class _Pulse(Callback):
    """Sends progress to the parent."""

    def __init__(self, parent: TextIO) -> None:
        self._parent, self._story, self._next = parent, Story(), 0.0

    def on_start(self, env: ContinualEnv, record: RunRecord, folder: Path | None) -> None:
        """Leave a word in the log where a run goes on."""
        if env.position:
            print(f"Continued after event {env.position} of {env.length}.", flush=True)

    def on_event(self, env: ContinualEnv, event: Event, reward: float) -> None:
        """Say how far it is, now and then."""
        self._story.follow(env, event, reward)
        if (now := time.monotonic()) >= self._next:
            self._next = now + EVERY
            _say(self._parent, asdict(Progress(env.position, env.length, self._story.what, self._story.accuracy)))


def _say(parent: TextIO, words: dict[str, Any]) -> None:
    parent.write(json.dumps(words) + "\n")
    parent.flush()


def _obey(orders: RawIOBase) -> None:
    """Do as the parent says; it is gone when the pipe ends."""
    while line := orders.readline():
        if line == STOP:
            _thread.interrupt_main()
    # Whoever takes over may start at once, so nothing more may be written.
    os._exit(1)


def main() -> None:
    """Play the order that comes on standard input."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What agents and libraries print goes to the log, and leaves the pipe to us.
    parent = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # A buffered reader would hold its lock when the interpreter ends.
    orders = open(0, "rb", buffering=0, closefd=False)
    order = Order(**json.loads(orders.readline()))
    threading.Thread(target=_obey, args=(orders,), daemon=True).start()
    try:
        play(order, [_Pulse(parent)])
        ending = Ending("finished")
    except KeyboardInterrupt:
        ending = Ending("stopped", "KeyboardInterrupt", "Interrupted; it keeps a checkpoint. Start the sweep again.")
    except Exception as error:
        traceback.print_exc()
        ending = Ending("failed", type(error).__name__, str(error))
    _say(parent, asdict(ending))


def play(order: Order, callbacks: Sequence[Callback]) -> RunRecord:
    """Play an order in this process, or continue it; see :func:`clgym.run`."""
    from clgym.runner import run  # torch comes with it, and a child that has just started is to obey first

    return run(
        order.scenario,
        order.agent,
        order.seed,
        scenario_settings=chosen("scenarios", order.scenario, order.scenario_settings),
        out=order.out,
        resume=True,
        device=order.device,
        precision=order.precision,
        callbacks=callbacks,
        checkpoint_seconds=order.checkpoint_seconds,
        **chosen("agents", order.agent, order.agent_settings),
    )


if __name__ == "__main__":
    main()
