"""The house rules that a machine can keep: who may import whom, one file one concept, every public word explained."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up; a file may import from its own floor and those below it.
FLOORS = tuple(
    set(names.split())
    for names in (
        "errors events kernels",
        "anytime backend bank batching distances erasure_metrics formulary gating lowrank merging metrics nf4 ops "
        "philox precision projection prox record references seeds spaces stacking",
        "agent attention audit backbones boxed_sets boxes canary checkpoint columns conformance contrast "
        "counterfactual demands detection_head detection_scorer detection_scores detection_sources detector "
        "device distil erasing erasure erasure_costs erasure_plots erasure_scores exchange fisher folder "
        "frozen group_sparse head hub hub_sets images increments inside labels learner lifetime lookahead lora "
        "memory mixture neighbours once optim parts plan plots probes prompting reading scenario scorer sources "
        "stack step_weights texts tuning unlearning variants vit whitebox worlds",
        "agents env scenarios",
        "agent_rules callbacks check registry scenario_rules settings",
        "audit_runs erasure_results grid ladder leaderboard reference_runs rescore runner sweep sweep_here "
        "sweep_ray worker",
        "__init__ __main__ board console doctor erasure_gallery erasure_verb fetch gallery jobs listing options "
        "run_verb sweep_verb",
    )
)
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}

# Imports that point up, each with its reason.
EXCEPTIONS = {
    ("runner", "__init__"): "a record states clgym.__version__",
}

# The files of the ops, which alone may know of kernels; everyone else comes in by clgym.ops.
OPS = {"bank", "batching", "gating", "lowrank", "merging", "nf4", "projection", "prox", "stacking"}

ROOMS = ("agents", "kernels", "leaderboard", "scenarios")
FILES = sorted(path for room in ("clgym", "clgym/worlds", *ROOMS) for path in (ROOT / room).glob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def place(path: Path) -> str:
    """Return the table's word for a file: its own name in clgym, elsewhere its folder's."""
    return path.stem if path.parent.name == "clgym" else path.parent.name


def imported(path: Path) -> set[str]:
    """Return what a file imports from clgym, by module or room, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "clgym" else [f"clgym.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            if top == "clgym":
                module = rest.split(".")[0]
                found.add(module if module in FLOOR else "__init__")
    return found


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, Function))


def length(function: Function) -> int:
    """Return the lines of a function from ``def`` to its end, its docstring left out."""
    words = function.body[0] if ast.get_docstring(function) is not None else None
    said = (words.end_lineno or 0) - words.lineno + 1 if words else 0
    return (function.end_lineno or 0) - function.lineno + 1 - said


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Yield the public classes, functions and methods of a module or a class."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}{node.name}.")


def test_every_file_has_its_floor() -> None:
    here = {path.stem for path in (ROOT / "clgym").glob("*.py")}
    assert here | {*ROOMS, "worlds"} == set(FLOOR), "say in FLOORS where each file belongs, and drop those that went"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_imports_point_down(path: Path) -> None:
    here = place(path)
    above = {name for name in imported(path) if FLOOR[name] > FLOOR[here] and (here, name) not in EXCEPTIONS}
    assert not above, f"{here} is on floor {FLOOR[here]} and may not import {sorted(above)}"


def test_exceptions_are_needed() -> None:
    needed = {(place(path), name) for path in FILES for name in imported(path) if FLOOR[name] > FLOOR[place(path)]}
    assert needed == set(EXCEPTIONS)


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name in ROOMS], ids=named)
def test_files_of_a_room_stand_alone(path: Path) -> None:
    assert path.parent.name == "leaderboard" or path.parent.name not in imported(path)


@pytest.mark.parametrize("path", [p for p in FILES if place(p) not in OPS | {"ops", "kernels"}], ids=named)
def test_kernels_are_reached_through_ops_alone(path: Path) -> None:
    assert not imported(path) & (OPS | {"kernels"}), "import clgym.ops, the one door"


def test_every_op_that_has_a_kernel_is_behind_the_door() -> None:
    knowing = {place(path) for path in FILES if "kernels" in imported(path)}
    assert knowing <= OPS <= imported(ROOT / "clgym/ops.py")


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_linked_and_shadow_nothing(room: str) -> None:
    link = ROOT / "clgym" / room
    assert link.is_symlink()
    assert link.readlink() == Path("..") / room
    assert link.resolve() == ROOT / room
    assert not (ROOT / room / "__init__.py").exists(), f"{room}/__init__.py would shadow others' {room}"
    assert not [path for path in (ROOT / room).iterdir() if path.is_dir() and path.name != "__pycache__"]


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_file_outgrows_one_concept(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_function_outgrows_a_page(path: Path) -> None:
    long = {function.name: length(function) for function in functions(path) if length(function) > 50}
    assert not long


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_public_word_is_explained(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = [name for name, node in public(tree.body) if not ast.get_docstring(node)]
    assert ast.get_docstring(tree)
    assert not silent


def test_no_file_is_named_after_nothing() -> None:
    vague = re.compile(r"(^|_)(utils?|helpers?|common|misc)(_|$)")
    sources = [*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    assert not [named(path) for path in sources if vague.search(path.stem)]


def test_a_function_is_measured_without_its_docstring() -> None:
    tree = ast.parse('def f(\n    x\n):\n    """One.\n\n    Two.\n    """\n    return x\n')
    assert isinstance(tree.body[0], ast.FunctionDef)
    assert length(tree.body[0]) == 4
