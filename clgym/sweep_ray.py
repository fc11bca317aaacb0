"""Plays runs on a Ray cluster: each is a task, tried again from its checkpoint when its worker or node dies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from clgym.callbacks import need
from clgym.errors import WorkerError
from clgym.worker import Ending, Order, Player, Progress, Tell

RETRIES = 3  # times that a run is tried again after its worker or node died
EVERY = 0.5  # seconds between two looks at what runs say
GRACE = 60.0  # seconds that runs are given to write a checkpoint on Ctrl-C


def play_on_ray(
    orders: Sequence[Order],
    address: str,
    gpus: float | None,
    tell: Tell,
    on_stop: Callable[[], None],
) -> None:
    """Play orders as Ray tasks that claim their threads as CPUs.

    Args:
        orders: What to play, in a folder that all nodes share.
        address: Of the cluster; ``""`` is the running one, or else a new one on this machine.
        gpus: GPUs that each run claims; ``None`` is 1, or 0 on the device ``"cpu"`` or where the cluster has none.
        tell: What is told of progress and endings, in this thread.
        on_stop: What is told that Ctrl-C was seen.

    Raises:
        DependencyError: Ray is not installed.
        WorkerError: The cluster cannot be reached.
        KeyboardInterrupt: Ctrl-C, once all have ended.
    """
    ray = need("ray", "ray")
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(address=address or None, log_to_driver=False)
        except ConnectionError as error:
            raise WorkerError(
                f"Expected a Ray cluster at {address!r}; got {error}. Start one with ray start --head, or leave "
                "the address out."
            ) from error
    try:
        _play_all(ray, orders, gpus, tell, on_stop)
    finally:
        if started:
            ray.shutdown()


def _play_all(ray: Any, orders: Sequence[Order], gpus: float | None, tell: Tell, on_stop: Callable[[], None]) -> None:
    notices = _beside_the_driver(ray)
    if gpus is None:
        gpus = 0 if orders[0].device == "cpu" or not ray.cluster_resources().get("GPU") else 1
    task = ray.remote(_play).options(
        num_cpus=orders[0].threads,
        num_gpus=gpus,
        max_retries=RETRIES,
        retry_exceptions=[WorkerError],
    )
    waiting = {task.remote(order, notices): order for order in orders}
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=EVERY)
            for order, progress in ray.get(notices.taken.remote()):
                tell(order, progress)
            for reference in ready:
                tell(waiting.pop(reference), _ending(ray, reference))
    except BaseException:
        on_stop()
        for reference in waiting:
            ray.cancel(reference)
        ray.wait(list(waiting), num_returns=len(waiting), timeout=GRACE)
        raise


class _Notices:
    """The newest progress of each run; a Ray actor."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[Order, Progress]] = {}

    def put(self, order: Order, progress: Progress) -> None:
        """Keep a word."""
        self._newest[order.path] = (order, progress)

    def taken(self) -> list[tuple[Order, Progress]]:
        """Give the words away."""
        out, self._newest = list(self._newest.values()), {}
        return out


def _beside_the_driver(ray: Any) -> Any:
    """Return the actor for notices, on the driver's node: it must outlive the others."""
    node = ray.get_runtime_context().get_node_id()
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(_Notices).options(num_cpus=0, scheduling_strategy=here).remote()


def _play(order: Order, notices: Any) -> Ending:
    """Play a run in a process below the Ray worker, on the node that Ray chose."""
    player = Player(order)
    try:
        ending = player.follow(partial(notices.put.remote, order))
    except BaseException:
        player.stop()
        player.follow(lambda progress: None)
        raise
    if ending.state == "died":
        raise WorkerError(ending.error)
    return ending


def _ending(ray: Any, reference: Any) -> Ending:
    """Return how a task ended; what Ray raises is told as an error."""
    try:
        ending: Ending = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return Ending("failed", type(error.cause).__name__, str(error.cause))
    except ray.exceptions.RayError as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return Ending(
            "died",
            "WorkerError",
            f"Expected a worker that plays to the end; got {what}. Look at the cluster, and start the sweep again.",
        )
    return ending
