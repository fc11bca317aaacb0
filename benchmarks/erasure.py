"""Plays the erasers' comparisons and writes their tables into a page, between its markers.

Run ``python benchmarks/erasure.py --page docs/erasure.md``, with ``--only removal`` for one section. Finished runs are
not played again. Every number is recomputed from the answers on disk, as ``clgym erasure`` does.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rounds import fill, hardware

from clgym.audit import BUDGET
from clgym.console import note
from clgym.leaderboard.table import estimate, named
from clgym.record import RunRecord

CALIBRATION = ("retrain", "isolated_lora", "finetune_retain", "gradient_ascent", "mask_logits", "noop_eraser")
REMOVAL = (
    *("gs_lora", "gs_lora_pp", "retrain", "finetune_retain", "gradient_ascent", "random_label", "scrub", "lirf", "fdr"),
    *("mask_logits", "noop_eraser"),
)
COUNTERFACTUAL = (
    *("gap_forget", "gap_retain", "gap_near", "tug_of_war", "js_excess", "ks_excess", "relapse_max"),
    *("plasticity_after", "erasure_index"),
)
REMOVED = ("acc_r", "acc_f", "acc_o", "acc_m", "h_mean")
AUDITED = ("steps to relearn", "recovered", "probe, few", "traces", "failed")


@dataclass(frozen=True)
class Section:
    """One comparison.

    Attributes:
        scenario: Scenario id.
        agents: Agent ids.
        columns: Metric ids.
        settings: Settings of the scenario.
        references: References of each run.
        audits: Whether the runs of the first seed are audited.
        rates: Values of ``erase_lr`` by agent where a tuning seed chose another than the agent's own.
    """

    scenario: str
    agents: tuple[str, ...]
    columns: tuple[str, ...]
    settings: tuple[str, ...] = ()
    references: int = 0
    audits: bool = False
    rates: tuple[tuple[str, float], ...] = ()

    def command(self, agent: str, seeds: str) -> list[str]:
        """Return what a user types to play an agent."""
        words = ["clgym", "run", self.scenario, "--agent", agent, "--seeds", seeds]
        words += [word for setting in self.settings for word in ("--with", setting)]
        words += [word for id, rate in self.rates if id == agent for word in ("--set", f"erase_lr={rate:g}")]
        return words + (["--references", str(self.references)] if self.references else [])


DETECTION = ("gs_lora", "finetune_retain", "gradient_ascent", "sequential_lora", "mask_logits", "noop_eraser")
FEW = ("gs_lora", "gs_lora_pp", "gradient_ascent", "finetune_retain")
SECTIONS = {
    "erasure_class": Section("CLIP-Erasure-v0", CALIBRATION, COUNTERFACTUAL, (), 3, True),
    "removal": Section("ViT-Erasure-ImageNet100-v0", REMOVAL, REMOVED),
    "erasure_task": Section("CLIP-Erasure-v0", CALIBRATION, COUNTERFACTUAL, ("kind=task",), 3, True),
    "removal_few": Section("ViT-Erasure-ImageNet100-v0", FEW, REMOVED, ("shots=4", "missing=5")),
    "removal_boxes": Section(
        "Detection-Erasure-v0", DETECTION, REMOVED, rates=(("gs_lora", 1e-2), ("finetune_retain", 1e-2))
    ),
}
QUICK = ("steps=2", "erase_steps=2")


def main(words: Sequence[str] | None = None) -> None:
    """Play and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, required=True, help="page with the markers")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--quick", action="store_true", help="two steps of each kind, to see that it runs")
    chosen = parser.parse_args(words)
    for name in chosen.only:
        section = SECTIONS[name]
        if chosen.quick:
            section = replace(section, settings=(*section.settings, *QUICK))
        fill(chosen.page, name, "\n".join(written(section, chosen.seeds, chosen.out)))


def clgym(*words: object) -> Any:
    """Run a verb; return what it prints as JSON."""
    command = [sys.executable, "-m", "clgym", *map(str, words), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def written(section: Section, seeds: str, out: Path) -> list[str]:
    """Play a section; return its lines."""
    found: dict[str, list[dict[str, Any]]] = {}
    records: list[RunRecord] = []
    audits: dict[str, dict[str, Any]] = {}
    for agent in section.agents:
        note(f"{section.scenario} {agent}")
        done = clgym(*section.command(agent, seeds)[1:], "--out", out, "--resume", "--quiet")
        folders = [Path(run["folder"]) for run in done["runs"]]
        records += map(RunRecord.load, folders)
        name = named(records[-1].agent, records[-1].agent_settings)
        found[name] = clgym("erasure", *folders)["runs"]
        if section.audits:
            if not (folders[0] / "audit.json").is_file():
                clgym("audit", folders[0])
            audits[name] = {str(one["request"]): one for one in json.loads((folders[0] / "audit.json").read_text())}
    lines = ["```bash", shlex.join(section.command("AGENT", seeds))]
    lines += [shlex.join(section.command(agent, seeds)) for agent, _ in section.rates]
    lines += ["```", ""]
    minutes = sum(record.resources["seconds"] for record in records) / 60
    lines += [f"{len(records)} runs of {minutes:.1f} minutes in all; {hardware()}.", ""]
    if section.columns is REMOVED:
        return lines + removal(found, section.columns)
    requests = dict.fromkeys(one["request"] for runs in found.values() for run in runs for one in run["requests"])
    for request in requests:
        lines += [f"Request {request}:", "", *table(values(found, request), section.columns), ""]
    return lines + [line for request in requests for line in audited(audits, request)]


def values(found: Mapping[str, Sequence[Mapping[str, Any]]], request: int) -> dict[str, dict[str, list[float]]]:
    """Return by agent and metric the values of one request over seeds, NaN where there is none."""
    out: dict[str, dict[str, list[float]]] = {}
    for agent, runs in found.items():
        for run in runs:
            for one in run["requests"]:
                if one["request"] == request and not one["subset"]:
                    for id, value in one["metrics"].items():
                        out.setdefault(agent, {}).setdefault(id, []).append(float("nan") if value is None else value)
    return out


def table(rows: Mapping[str, Mapping[str, Sequence[float]]], columns: Sequence[str]) -> list[str]:
    """Return a table with a line per agent, mean and interval over seeds in each cell."""
    lines = ["| agent | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for agent, metrics in rows.items():
        lines.append(
            f"| {agent} | " + " | ".join(str(estimate(metrics.get(id, [float("nan")]))) for id in columns) + " |"
        )
    return lines


def removal(found: Mapping[str, Sequence[Mapping[str, Any]]], columns: Sequence[str]) -> list[str]:
    """Return the tables of a removal stream: H-mean after each request, and every number after the last."""
    requests = sorted({one["request"] for runs in found.values() for run in runs for one in run["requests"]})
    after = {request: values(found, request) for request in requests}
    means = {agent: {f"after {r}": after[r][agent]["h_mean"] for r in requests} for agent in found}
    return [
        "H-mean after each request:", "", *table(means, [f"after {r}" for r in requests]), "",
        "After the last request:", "", *table(after[requests[-1]], columns),
    ]  # fmt: skip


def audited(audits: Mapping[str, Mapping[str, Any]], request: int) -> list[str]:
    """Return the table of what audits found of one request."""
    lines = [f"Audits of request {request}, first seed; agent / reference, accuracies in percent:", ""]
    lines += ["| agent | " + " | ".join(AUDITED) + " |", "| --- |" + " --- |" * len(AUDITED)]
    for agent, requests in audits.items():
        one = requests[str(request)]
        cells = [" / ".join("never" if k > BUDGET else str(k) for k in one["steps"])]
        cells += [" / ".join(f"{100 * x:.1f}" for x in one["recovery"])]
        few = one["probes"].get("few")
        cells += [" / ".join(f"{100 * x:.1f}" for x in few) if few else "-"]
        cells += [str(sum(trace["count"] for trace in one["traces"]) or "none"), ", ".join(one["failed"]) or "none"]
        lines.append(f"| {agent} | " + " | ".join(cells) + " |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
