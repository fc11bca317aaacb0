"""Plays runs on this machine, several at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue

import torch

from clgym.device import pick_device
from clgym.worker import Ending, Order, Player, Progress, Tell


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slots_of(jobs: int, device: str) -> list[str]:
    """Return for each run at a time the GPU that it sees, or ``""`` for all there are.

    Args:
        jobs: Runs at a time; 0 is one per GPU where runs use them, otherwise one per core.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Raises:
        SettingError: The device is unknown or not there.
    """
    gpus = []
    if pick_device(device).type == "cuda":
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        gpus = gpus if gpus != [""] else [str(n) for n in range(torch.cuda.device_count())]
    jobs = jobs or len(gpus) or cores()
    return [gpus[n % len(gpus)] if len(gpus) > 1 else "" for n in range(jobs)]


def play_here(orders: Sequence[Order], slots: Sequence[str], tell: Tell, on_stop: Callable[[], None]) -> None:
    """Play orders, each in a process of its own and in a slot of its own.

    Args:
        orders: What to play.
        slots: As :func:`slots_of` returns them.
        tell: What is told of progress and endings, in this thread.
        on_stop: What is told that Ctrl-C was seen.

    Raises:
        KeyboardInterrupt: Ctrl-C, once all have ended; a second one kills them.
    """
    pool = _Pool(orders)
    with ThreadPoolExecutor(len(slots)) as threads:
        servers = [threads.submit(pool.serve, gpu) for gpu in slots[: len(orders)]]
        try:
            while not (all(server.done() for server in servers) and pool.news.empty()):
                try:
                    tell(*pool.news.get(timeout=0.1))
                except Empty:
                    continue
        except BaseException:
            try:
                pool.stop()
                on_stop()
                wait(servers)
            finally:
                pool.kill()  # those that a second Ctrl-C would not wait for
            raise
    for server in servers:
        server.result()


class _Pool:
    """Orders that wait, and the processes that play some."""

    def __init__(self, orders: Sequence[Order]) -> None:
        self.news: SimpleQueue[tuple[Order, Progress | Ending]] = SimpleQueue()
        self._waiting = list(reversed(orders))
        self._players: list[Player] = []
        self._lock = threading.Lock()

    def serve(self, gpu: str) -> None:
        """Play one order after another until none waits."""
        while started := self._next(gpu):
            order, player = started
            tell = partial(self._tell, order)
            tell(player if isinstance(player, Ending) else player.follow(tell))

    def _tell(self, order: Order, news: Progress | Ending) -> None:
        self.news.put((order, news))

    def _next(self, gpu: str) -> tuple[Order, Player | Ending] | None:
        with self._lock:
            if not self._waiting:
                return None
            order = self._waiting.pop()
            try:
                player = Player(replace(order, gpu=gpu))
            except OSError as error:
                return order, Ending("failed", type(error).__name__, str(error))
            self._players.append(player)
            return order, player

    def stop(self) -> None:
        """Start nothing more, and have what is played stop after the event in hand."""
        with self._lock:
            self._waiting.clear()
            for player in self._players:
                player.stop()

    def kill(self) -> None:
        """End what is played at once."""
        for player in self._players:
            player.kill()
