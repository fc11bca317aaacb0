"""What can stand in a table of runs: metrics, white-box columns and costs, each with what it says of itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clgym.errors import NotRegisteredError, SettingError
from clgym.formulary import Metric, describe
from clgym.metrics import METRICS, scores
from clgym.whitebox import WHITEBOX

if TYPE_CHECKING:
    from clgym.record import RunRecord

# Inputs of metrics that a run has or a user gives beside the matrix; what needs them is shown wherever it is there.
_BESIDE_THE_MATRIX = {"probes", "prequential", "before", "single", "joint"}


def _cost(id: str, title: str, formula: str, words: str, read: Callable[[Mapping[str, Any]], Any]) -> Metric:
    def function(resources: Mapping[str, Any]) -> float:
        value = read(resources)
        return float("nan") if value is None else float(value)

    function.__doc__ = words
    takes = ("resources",)
    return Metric(id, title, formula, 0, math.inf, False, "the run's record", takes, takes, function, percent=False)


def _kept(name: str) -> Callable[[Mapping[str, Any]], Any]:
    """Return a reader of an agent's footprint after its last task."""
    return lambda resources: resources["per_task"][-1][name] if resources.get("per_task") else None


_AFTER = "after the last task, as the agent counts them"
COSTS: dict[str, Metric] = {
    cost.id: cost
    for cost in (
        _cost(
            "trainable",
            "Trainable parameters",
            f"parameters trained in a task, {_AFTER}",
            "Parameters trained in the last task, the classifier left out; lower is better. Not what is kept.",
            _kept("trainable"),
        ),
        _cost(
            "stored",
            "Stored values",
            f"values kept between tasks beyond the backbone, {_AFTER}",
            "Values kept between tasks beyond the backbone; lower is better. Samples are ``sample_bytes``.",
            _kept("stored"),
        ),
        _cost(
            "added_at_inference",
            "Parameters added at inference",
            f"parameters that answering uses beyond the backbone's, {_AFTER}",
            "Parameters that answering uses beyond the backbone's; lower is better. Not time: see ``query_seconds``.",
            _kept("added_at_inference"),
        ),
        _cost(
            "sample_bytes",
            "Bytes of stored samples",
            f"bytes of training samples kept, {_AFTER}",
            "Bytes of training samples kept; lower is better. Not the bytes on disk: see ``state_bytes``.",
            _kept("sample_bytes"),
        ),
        _cost(
            "state_bytes",
            "Bytes of state",
            "bytes of all arrays in the agent's state_dict after the last task",
            "Bytes that a checkpoint of the agent holds; lower is better. Merged weights count too.",
            _kept("state_bytes"),
        ),
        _cost(
            "train_seconds",
            "Seconds of training",
            "seconds in the agent's hands but for questions",
            "Seconds of training; lower is better. Not comparable between machines.",
            lambda resources: resources.get("train_seconds"),
        ),
        _cost(
            "query_seconds",
            "Seconds of answering",
            "seconds in the agent's hands with questions",
            "Seconds of answering; lower is better. Not comparable between machines.",
            lambda resources: resources.get("query_seconds"),
        ),
    )
}


def columns() -> dict[str, Metric]:
    """Return everything that can stand in a table, by id."""
    return METRICS | WHITEBOX | COSTS


def explain(id: str) -> str:
    """Say what a column is: formula, range, direction, source, inputs, and what it must not be taken for.

    Raises:
        NotRegisteredError: There is no such column.
    """
    if id not in columns():
        raise NotRegisteredError.among("metric or column", id, columns())
    return describe(columns()[id])


def chosen(text: str) -> tuple[str, ...]:
    """Return the ids that commas part in a text, each once.

    >>> chosen("mtil_last, stored")
    ('mtil_last', 'stored')

    Raises:
        NotRegisteredError: One is no column.
        SettingError: There is none.
    """
    ids = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not ids:
        raise SettingError(f"Expected ids of columns parted by commas; got {text!r}. See clgym explain.")
    for id in ids:
        explain(id)
    return ids


def values(record: RunRecord) -> dict[str, float]:
    """Return every column of a finished run; what it has not is absent.

    Metrics of the matrix follow from ``record.matrix``. Those that need more are read in ``record.metrics``, which
    ``clgym score`` fills from the predictions first. White-box columns are those after the last task.
    """
    out = {id: float("nan") if value is None else float(value) for id, value in record.metrics.items()}
    out |= scores(record.matrix)
    rows = record.resources.get("whitebox") or [{}]
    out |= {id: float("nan") if value is None else value for id, value in rows[-1].items()}
    return out | {id: cost.function(record.resources) for id, cost in COSTS.items()}


def shown(usual: Sequence[str], metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the metrics to show of a run: the scenario's, then what it has of those that need more than the matrix."""
    more = [id for id in metrics if id in METRICS and _BESIDE_THE_MATRIX & set(METRICS[id].needs)]
    return tuple(dict.fromkeys([*usual, *more]))


def needing(inputs: Iterable[str]) -> list[str]:
    """Return the metrics that cannot do without one of some inputs, such as a reference.

    >>> needing(["joint"])
    ['intransigence']
    """
    wanted = set(inputs)
    return [metric.id for metric in METRICS.values() if wanted & set(metric.needs)]


def said(id: str, value: float | None) -> str:
    """Say a value as its column is shown: a share in percent, anything else as it is, and a dash for none.

    >>> said("last", 0.5), said("stable_rank", 3.14159), said("stored", 4425984.0), said("last", None)
    ('50.0', '3.142', '4,425,984', '-')
    """
    if value is None or math.isnan(value):
        return "-"
    if not columns()[id].percent:
        return plain(value)
    return "100" if value > 0.9995 else f"{100 * value:.1f}"


def plain(value: float) -> str:
    """Say a number that is no share, in four digits or, from 1,000 on, to the unit.

    >>> plain(0.012345), plain(12.3456), plain(12345.6)
    ('0.01235', '12.35', '12,346')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
