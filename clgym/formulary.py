"""The table of metrics: what a metric states about itself, how it is entered, how inputs are checked.

Index convention of every formula: ``T`` tasks, numbered from 1. ``R[t,j]`` is the accuracy on the held-out
set of task ``j`` after learning task ``t``; ``R[0,j]`` is the accuracy before any training (zero-shot). As
an array ``R`` is float64 of shape ``(T+1, T)``, task ``j`` in column ``j-1``, entries in [0, 1] or NaN for
"not measured". An average over a set that holds a NaN, and an average over an empty set, is NaN.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeAlias

import numpy as np
import numpy.typing as npt

from clgym.errors import NotRegisteredError, SettingError

Matrix: TypeAlias = npt.NDArray[np.float64]
Vector: TypeAlias = npt.NDArray[np.float64]
Counts: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]
Given = ParamSpec("Given")


@dataclass(frozen=True, eq=False)
class Probes:
    """Evaluations made while a task is being learned; ``P`` of them, in any order.

    The evaluation at the end of task ``t`` is row ``t`` of ``R`` and is not repeated here.

    Attributes:
        task_learning: The task in training at each evaluation, from 1; shape ``(P,)``.
        step: Training steps (batches) taken on that task before the evaluation; 0 is before the first one;
            shape ``(P,)``.
        accuracy: Accuracy on every task, in [0, 1] or NaN for "not measured"; shape ``(P, T)``.

    Raises:
        SettingError: The shapes disagree, a number is out of range, or one moment occurs twice.
    """

    task_learning: Counts
    step: Counts
    accuracy: Matrix

    def __post_init__(self) -> None:
        """Convert to arrays and check them."""
        task_learning = _counts(self.task_learning, "probes.task_learning")
        step = _counts(self.step, "probes.step")
        accuracy = _accuracies(self.accuracy, "probes.accuracy")
        if accuracy.ndim != 2 or not len(task_learning) == len(step) == len(accuracy):
            raise SettingError(
                "Expected probes of shapes (P,), (P,) and (P, T); got "
                f"{task_learning.shape}, {step.shape} and {accuracy.shape}. Give one entry per evaluation."
            )
        tasks = accuracy.shape[1]
        if len(task_learning) and not (task_learning.min() >= 1 and task_learning.max() <= tasks):
            raise SettingError(
                f"Expected probes.task_learning in 1..{tasks}; got {task_learning.min()}.."
                f"{task_learning.max()}. Number tasks from 1."
            )
        if len(set(zip(task_learning.tolist(), step.tolist(), strict=True))) < len(step):
            raise SettingError(
                "Expected one probe per task and step; got a moment twice. Count steps from 0 in each task."
            )
        object.__setattr__(self, "task_learning", task_learning)
        object.__setattr__(self, "step", step)
        object.__setattr__(self, "accuracy", accuracy)


@dataclass(frozen=True)
class Metric:
    """What a metric states about itself.

    Attributes:
        id: Name in the table and in records; the name of the function.
        title: Name in the field, with the abbreviation in use.
        formula: The definition, in the index convention of this module.
        low: Smallest possible value.
        high: Largest possible value.
        higher_is_better: None where neither direction is.
        source: Where the definition stands: arXiv id and equation or section.
        needs: Inputs without which it cannot be computed.
        takes: All inputs, ``needs`` first.
        function: The metric itself; its inputs are checked at each call.
        percent: Whether it is a share, shown in percent; others are shown as they are.
    """

    id: str
    title: str
    formula: str
    low: float
    high: float
    higher_is_better: bool | None
    source: str
    needs: tuple[str, ...]
    takes: tuple[str, ...]
    function: Callable[..., float]
    percent: bool = True


METRICS: dict[str, Metric] = {}


def metric(
    title: str,
    formula: str,
    *,
    low: float = 0.0,
    high: float = 1.0,
    better: Literal["higher", "lower"] | None,
    source: str,
) -> Callable[[Callable[Given, float]], Callable[Given, float]]:
    """Enter a function in the table of metrics under its own name, and check its inputs at each call.

    Its parameters are named as in ``INPUTS``; those without a default are the inputs it needs.
    """

    def enter(function: Callable[Given, float]) -> Callable[Given, float]:
        name = function.__name__
        signature = inspect.signature(function)
        takes = tuple(signature.parameters)
        needs = tuple(p for p in takes if signature.parameters[p].default is inspect.Parameter.empty)
        other = METRICS[name].function.__module__ if name in METRICS else function.__module__
        assert other == function.__module__, f"{name} is entered by {other} and by {function.__module__}"
        assert set(takes) <= set(INPUTS), f"{name} takes inputs that INPUTS does not check"

        @functools.wraps(function)
        def checked(*args: Given.args, **kwargs: Given.kwargs) -> float:
            given = signature.bind(*args, **kwargs)
            given.arguments.update(_checked(given.arguments))
            return function(*given.args, **given.kwargs)

        higher = None if better is None else better == "higher"
        METRICS[name] = Metric(name, title, formula, low, high, higher, source, needs, takes, checked)
        return checked

    return enter


def explain(id: str) -> str:
    """Say what a metric is: formula, range, direction, source, inputs, and what it must not be taken for.

    Raises:
        NotRegisteredError: No metric has that id.
    """
    if id not in METRICS:
        raise NotRegisteredError.among("metric", id, METRICS)
    return describe(METRICS[id])


def describe(m: Metric) -> str:
    """Say all that a metric states about itself, and its docstring."""
    direction = {True: "higher is better", False: "lower is better", None: "neither direction is better"}
    optional = [f"{name} (optional)" for name in m.takes if name not in m.needs]
    return "\n".join(
        [
            f"{m.id}: {m.title}",
            f"  formula  {m.formula}",
            f"  range    [{m.low:g}, {m.high:g}], {direction[m.higher_is_better]}",
            f"  source   {m.source}",
            f"  inputs   {', '.join([*m.needs, *optional])}",
            "",
            (inspect.getdoc(m.function) or "").split(">>>")[0].rstrip(),
        ]
    )


def scores(
    R: Matrix,
    *,
    single: Vector | None = None,
    joint: Vector | None = None,
    sizes: Counts | None = None,
    classes: Counts | None = None,
    probes: Probes | None = None,
    prequential: Vector | None = None,
    before: Flags | None = None,
    after: Flags | None = None,
    window: int = 10,
    beta: int = 10,
    erasure: Mapping[str, object] | None = None,
) -> dict[str, float]:
    """Compute every metric whose inputs are given; the others are absent, never 0.

    The table is complete once ``clgym.metrics`` is imported, which exports this function.

    Args:
        R: Accuracy matrix, ``(T+1, T)``, in [0, 1]; NaN where not measured.
        single: Accuracy on task ``j`` of a model trained on task ``j`` alone; ``(T,)``.
        joint: Accuracy on task ``t`` of a model trained on tasks 1 to ``t`` together; ``(T,)``.
        sizes: Held-out items of each task; ``(T,)``.
        classes: Classes of each task; ``(T,)``.
        probes: Evaluations inside the tasks.
        prequential: Accuracy on each training batch before training on it; ``(N,)``.
        before: Whether each item was answered right before an update.
        after: The same items after the update.
        window: Length of the windowed metrics, in evaluations.
        beta: Last step of ``learning_curve_area``.
        erasure: Inputs of :mod:`clgym.erasure_metrics` about one request, by name.

    Raises:
        SettingError: An input has the wrong shape or is out of range.

    >>> from clgym.metrics import scores
    >>> scores(np.array([[0.25], [0.75]]))["average_accuracy"]
    0.75
    """
    given: dict[str, object] = {"R": R, "single": single, "joint": joint, "sizes": sizes, "classes": classes}
    given |= {"probes": probes, "prequential": prequential, "before": before, "after": after}
    given |= {"window": window, "beta": beta, **(erasure or {})}
    known = {name: value for name, value in given.items() if value is not None}
    return {
        m.id: m.function(**{name: known[name] for name in m.takes if name in known})
        for m in METRICS.values()
        if known.keys() >= set(m.needs)
    }


def mean(values: npt.ArrayLike) -> float:
    """Plain mean; NaN for an empty set and for a set that holds a NaN.

    >>> mean([0.25, 0.75]), mean([])
    (0.5, nan)
    """
    flat = np.asarray(values, dtype=np.float64)
    return float(flat.mean()) if flat.size else float("nan")


def _accuracies(values: object, name: str) -> Matrix:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise SettingError(
            f"Expected {name} as numbers; got {type(values).__name__} with other entries. Write NaN for none."
        ) from None
    wrong = array[(array < 0) | (array > 1)]
    if wrong.size:
        raise SettingError(
            f"Expected accuracies in [0, 1]; got {wrong[0]:g} in {name}. Divide percentages by 100, "
            "and turn a loss into an accuracy first."
        )
    return array


def _matrix(values: object, name: str) -> Matrix:
    R = _accuracies(values, name)
    if R.ndim != 2 or R.shape[1] < 1 or R.shape[0] != R.shape[1] + 1:
        raise SettingError(
            f"Expected {name} of shape (T+1, T), row 0 before any training; got {R.shape}. "
            "Put a row of NaN first if nothing was measured before training."
        )
    return R


def _vector(values: object, name: str) -> Vector:
    array = _accuracies(values, name)
    if array.ndim != 1:
        raise SettingError(f"Expected {name} as one row of numbers; got shape {array.shape}. Flatten it first.")
    return array


def _counts(values: object, name: str) -> Counts:
    array = np.asarray(values)
    integral = array.size == 0 or np.issubdtype(array.dtype, np.integer)
    if array.ndim != 1 or not integral or (array.size and array.min() < 0):
        raise SettingError(f"Expected {name} as one row of whole numbers from 0; got {values!r}. Count, do not weigh.")
    return array.astype(np.int64)


def _weights(values: object, name: str) -> Counts:
    array = _counts(values, name)
    if not array.sum():
        raise SettingError(f"Expected {name} with at least one above 0; got {values!r}. Count the held-out items.")
    return array


def _flags(values: object, name: str) -> Flags:
    array = np.asarray(values)
    if array.dtype != np.bool_ and array.size:
        raise SettingError(f"Expected {name} as booleans, True = right; got {array.dtype}. Compare with the labels.")
    return array.astype(np.bool_)


def _probes(value: object, name: str) -> Probes:
    if not isinstance(value, Probes):
        raise SettingError(f"Expected {name} as Probes; got {type(value).__name__}. Build clgym.metrics.Probes(...).")
    return value


def _compared(values: object, name: str) -> Vector:
    array = _accuracies(values, name)
    if array.ndim not in (1, 2) or len(array) < 2:
        raise SettingError(
            f"Expected {name} of an agent and one or more references, in this order; got shape {array.shape}. "
            "Put the agent first."
        )
    return array


def _per_item(values: object, name: str) -> Matrix:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (2, 3) or len(array) < 2 or not array[0].size or np.isnan(array).any():
        raise SettingError(
            f"Expected {name} of an agent and one or more references about the same items, without NaN; got "
            f"{array.dtype} of shape {array.shape}. Put the agent first."
        )
    return array


def _share(value: object, name: str) -> float:
    return float(_accuracies(value, name))


def _whole(least: int) -> Callable[[object, str], int]:
    def check(value: object, name: str) -> int:
        if not isinstance(value, int) or value < least:
            raise SettingError(f"Expected {name} as a whole number from {least}; got {value!r}. Give a larger one.")
        return value

    return check


INPUTS: dict[str, Callable[[Any, str], Any]] = {
    "R": _matrix,
    "single": _vector,
    "joint": _vector,
    "sizes": _weights,
    "classes": _weights,
    "probes": _probes,
    "prequential": _vector,
    "before": _flags,
    "after": _flags,
    "window": _whole(2),
    "beta": _whole(0),
    **dict.fromkeys(("erased", "retained", "tested", "near", "later", "relearned", "renewed"), _compared),
    **dict.fromkeys(("answers", "confidence", "members", "others"), _per_item),
    **dict.fromkeys(("remaining", "forgotten", "earlier", "withheld", "pretrained"), _share),
}


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """Check each input alone, then that all are about the same tasks and items."""
    out = {name: INPUTS[name](value, name) for name, value in given.items() if value is not None}
    if "R" in out:
        tasks = out["R"].shape[1]
        lengths: dict[str, int] = {
            name: len(out[name]) for name in ("single", "joint", "sizes", "classes") if name in out
        }
        if "probes" in out:
            lengths["probes.accuracy"] = out["probes"].accuracy.shape[1]
        for name, length in lengths.items():
            if length != tasks:
                raise SettingError(
                    f"Expected {name} for the {tasks} tasks of R; got {length}. Give one entry per task."
                )
    if "before" in out and "after" in out and out["before"].shape != out["after"].shape:
        raise SettingError(
            f"Expected before and after about the same items; got shapes {out['before'].shape} and "
            f"{out['after'].shape}. Keep the order and number of items."
        )
    return out
