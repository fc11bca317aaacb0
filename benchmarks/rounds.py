"""How the kernel benchmarks measure and report: variants in turn, round by round, and ratios within a round.

The machine may be shared. Processor time of one thread does not count what others do; what they do to clocks and caches
meets all variants of a round alike, and every other round runs backwards. A ratio is the median over rounds of the
quotients within a round. The A/A ratio, a variant against its own copy in the same rounds, says how far from 1 a ratio
of equals lies: nothing is known better, and a goal is missed only by more than that.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from rich.table import Table

from clgym.console import note, show, stdout
from clgym.record import write_atomic

Work = Callable[[], object]
Times = Mapping[str, list[float]]
HEAD = ("id", "ratio", "measured", "goal", "verdict", "A/A")


@dataclass(frozen=True)
class Row:
    """A ratio, its goal and how well it is known.

    Attributes:
        id: Its name in the table of goals.
        what: What is over what.
        value: The ratio; ``None`` where it was not measured.
        again: The A/A ratio of the same rounds; ``None`` where a count has no noise.
        at_most: Goal, if small is good.
        at_least: Goal, if large is good.
        why: What kept it from being measured.
    """

    id: str
    what: str
    value: float | None
    again: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    why: str = ""

    @property
    def verdict(self) -> str:
        """Say whether the goal is met, missed, or missed by less than the noise."""
        if self.value is None:
            return self.why
        noise = 1 + abs((self.again or 1) - 1)
        for goal, over in ((self.at_most, 1.0), (self.at_least, -1.0)):
            if goal is not None and (self.value / goal) ** over > 1:
                return "missed" if (self.value / goal) ** over > noise else "missed within A/A"
        return "" if self.at_most is self.at_least is None else "met"

    def cells(self) -> tuple[str, ...]:
        """Return the row in words."""
        goal = f"<= {self.at_most}" if self.at_most else f">= {self.at_least}" if self.at_least else ""
        return (self.id, self.what, _figure(self.value), goal, self.verdict, _figure(self.again))


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def measured(
    variants: Mapping[str, Work],
    rounds: int,
    repeats: int = 1,
    device: str = "cpu",
    clock: Callable[[], float] = time.process_time,
) -> Times:
    """Return seconds of each variant in each round; a first round warms up and is not counted.

    Processor time of several threads counts those that wait too: there the clock has to be the wall's.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name in list(variants)[:: 1 if number % 2 else -1]:
            taken = seconds(variants[name], repeats, device, clock)
            times[name] += [taken] if number else []
    return times


def seconds(work: Work, repeats: int, device: str, clock: Callable[[], float] = time.process_time) -> float:
    """Return what one call takes: of the processor, or between two events of the GPU's stream."""
    if device == "cpu":
        start = clock()
        for _ in range(repeats):
            work()
        return (clock() - start) / repeats
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    for _ in range(repeats):
        work()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / repeats


def ratio(times: Times, above: str, below: str) -> float:
    """Return the median over rounds of ``above / below``."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def arguments(words: str, rounds: int, ids: Sequence[str], argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ``--quick`` takes one round of tiny sizes, to see that all of it runs."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=ids, default=list(ids), help="some of them")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--quick", action="store_true", help="one round of tiny sizes; the figures say nothing")
    parser.add_argument("--page", type=Path, help="write the table into this page, between its two markers")
    chosen = parser.parse_args(argv)
    if chosen.quick and chosen.page:
        parser.error("Expected --page or --quick; got both. Figures of a quick run say nothing.")
    chosen.rounds = 1 if chosen.quick else chosen.rounds
    return chosen


def doing(id: str) -> None:
    """Say on standard error what is being measured."""
    note(f"measuring {id} ...")


def publish(chosen: argparse.Namespace, name: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the table with its circumstances, and write it into the page that was asked for."""
    table = Table(*head, title=name, caption=hardware(), caption_justify="left", title_justify="left")
    for row in rows:
        table.add_row(*row)
    show(stdout(), table)
    if chosen.page:
        lines = [" | ".join(cells) for cells in (head, ["---"] * len(head), *rows)]
        fill(chosen.page, name, "\n".join((hardware() + ".", "", *(f"| {line} |" for line in lines))))


def fill(page: Path, name: str, text: str) -> None:
    """Put text between the markers ``<!-- name -->`` and ``<!-- end of name -->`` of a page.

    Raises:
        ValueError: The page lacks them.
    """
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(first)
    _, closed, after = rest.partition(last)
    if not found or not closed:
        raise ValueError(f"Expected the markers {first} and {last} in {page}; got none. Write them where it belongs.")
    write_atomic(page, f"{before}{first}\n{text}\n{last}{after}".encode())


def hardware() -> str:
    """Describe date, machine and the versions that matter."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpu = f", {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if torch.cuda.is_available() else ""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "triton", "numpy", "peft"))
    return (
        f"{time.strftime('%Y-%m-%d')}; {os.cpu_count()} cores of {model}{gpu}, {torch.get_num_threads()} thread, "
        f"{torch.backends.cpu.get_cpu_capability()}; Python {platform.python_version()}, {packages}"
    )
