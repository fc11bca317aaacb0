"""Plays sweeps and writes a page of their tables, ladders, pictures and circumstances.

All arguments but ``--page`` and ``--title`` are those of ``clgym sweep``; a lone ``+`` begins the next sweep and
a section of its own. Finished runs are not played again.

    python benchmarks/results.py --page docs/results.md CLIP-MTIL-v0 --agents all --seeds 0-2 --ladder lr=5e-4,1e-3,2e-3
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from clgym.console import percent
from clgym.gallery import stability_plasticity
from clgym.leaderboard.table import markdown, named, summarise, table_key
from clgym.plots import png_bytes, scatter_figure
from clgym.record import RunRecord, write_atomic


def main() -> int:
    """Sweep and write the page; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--title", default="Results")
    chosen, words = parser.parse_known_args()
    lines = [f"# {chosen.title}", ""]
    for number, sweep in enumerate(split(words), start=1):
        command = [sys.executable, "-m", "clgym", "sweep", *sweep, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(done.stdout)
            return done.returncode
        lines += section(json.loads(done.stdout), sweep, chosen.page, number)
    notes = chosen.page.with_name(f"{chosen.page.stem}_notes.md")
    lines += [notes.read_text(encoding="utf-8")] if notes.exists() else []
    write_atomic(chosen.page, "\n".join(lines).rstrip().encode() + b"\n")
    return 0


def split(words: list[str]) -> list[list[str]]:
    """Return the words of each sweep.

    >>> split(["A", "--seeds", "0", "+", "B"])
    [['A', '--seeds', '0'], ['B']]
    """
    sweeps: list[list[str]] = [[]]
    for word in words:
        if word == "+":
            sweeps.append([])
        else:
            sweeps[-1].append(word)
    return sweeps


FEW = 4  # agents; a picture of no more says nothing that their table does not


def section(found: dict[str, Any], words: list[str], page: Path, number: int) -> list[str]:
    """Return the lines of one sweep; stability is drawn against plasticity where there are several seeds."""
    records = [RunRecord.load(Path(cell["folder"])) for cell in found["cells"]]
    lines = [*introduction(found, records, words), "", markdown(summarise(records)), "", *ladders(found["ladders"])]
    return lines + (pictures(records, page, number) if len({r.seed for r in records}) > 1 else [])


def introduction(found: dict[str, Any], records: list[RunRecord], words: list[str]) -> list[str]:
    """Return command and circumstances."""
    rungs = [rung["folder"] for ladder in found["ladders"] for rung in ladder["rungs"] if not rung["error"]]
    every = [*records, *(RunRecord.load(Path(folder)) for folder in rungs)]
    minutes = sum(record.resources["seconds"] for record in every) / 60
    stages = {name: sorted({str(r.hardware[name]) for r in every}) for name in ("machine", "device", "threads")}
    on = "; ".join(f"{name} {', '.join(values)}" for name, values in stages.items())
    torch = ", ".join(sorted({record.versions["torch"] for record in every}))
    skipped = [f"Not played: {skip['agent']} on {skip['scenario']}: {skip['reason']}" for skip in found["skipped"]]
    return [
        "Written by `benchmarks/results.py` from the runs of",
        "",
        "```bash",
        shlex.join(["clgym", "sweep", *words]),
        "```",
        "",
        "Percent, mean and 95 % t-interval over seeds, recomputed from the matrices of the run records. "
        f"{len(every)} runs of {minutes:.1f} minutes in all; {on}; torch {torch}.",
        *(line for skip in skipped for line in ("", skip)),
    ]


def ladders(climbed: list[dict[str, Any]]) -> list[str]:
    """Return a table of every scenario's ladders, the chosen rung in bold."""
    lines = []
    for stage in dict.fromkeys(named(ladder["scenario"], ladder["scenario_settings"]) for ladder in climbed):
        here = [one for one in climbed if named(one["scenario"], one["scenario_settings"]) == stage]
        rungs = list(dict.fromkeys(_words(rung["settings"]) for one in here for rung in one["rungs"]))
        lines += [f"### Ladders on {stage}", ""]
        lines += [
            f"Chosen on seed {here[0]['tuning_seed']}, which is not reported, by `average_accuracy` in percent:",
            "",
        ]
        lines += ["| agent | " + " | ".join(rungs) + " |", "|---|" + "---:|" * len(rungs)]
        for one in here:
            cells = {
                _words(rung["settings"]): "**" * (rung["settings"] == one["chosen"])
                + ("failed" if rung["error"] else percent(rung["average_accuracy"]))
                + "**" * (rung["settings"] == one["chosen"])
                for rung in one["rungs"]
            }
            agent = named(one["agent"], one["agent_settings"])
            lines.append(f"| {agent} | " + " | ".join(cells.get(rung, "") for rung in rungs) + " |")
        lines.append("")
    return lines


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def pictures(records: list[RunRecord], page: Path, section: int) -> list[str]:
    """Draw stability against plasticity for each table, beside the page; return the lines that show it."""
    tables: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in records:
        tables.setdefault(table_key(record), []).append(record)
    lines = []
    for number, group in enumerate(tables.values(), start=section):
        if len({named(record.agent, record.agent_settings) for record in group}) <= FEW:
            continue
        title = named(group[0].scenario, {"source": group[0].source, **group[0].scenario_settings})
        path = Path("img") / f"{page.stem}_{number}.png"
        write_atomic(page.parent / path, png_bytes(scatter_figure(stability_plasticity(group), title)))
        lines += [f"![Stability against plasticity on {title}]({path.as_posix()})", ""]
    return lines


if __name__ == "__main__":
    sys.exit(main())
