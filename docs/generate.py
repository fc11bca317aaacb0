"""Writes the pages that restate the code: ``python docs/generate.py``; ``--check`` fails if one is stale."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

from clgym.hub_sets import SETS
from clgym.metrics import METRICS
from clgym.registry import SHARED, Entry, entries, settings

HERE = Path(__file__).parent
STALE = "Written by `python docs/generate.py` from the code; edit that instead."


def class_docstring(entry: Entry) -> str:
    """Return a class's docstring from its source, without importing it."""
    tree = ast.parse(entry.path.read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == entry.name)
    return inspect.cleandoc(ast.get_docstring(node) or "")


def metrics_page() -> str:
    """Return one section per metric."""
    lines = ["# Metrics", "", STALE, "", METRICS_INTRODUCTION, ""]
    lines += ["| id | name | range | better | needs |", "|---|---|---|---|---|"]
    for m in METRICS.values():
        better = {True: "higher", False: "lower", None: "neither"}[m.higher_is_better]
        limits = f"[{m.low:g}, {m.high:g}]"
        lines.append(f"| [`{m.id}`](#{m.id}) | {m.title} | {limits} | {better} | {', '.join(m.needs)} |")
    for m in METRICS.values():
        words = (inspect.getdoc(m.function) or "").split(">>>")[0].strip()
        lines += ["", f"## `{m.id}`", "", f"`{m.formula}`", "", words, "", f"Source: {m.source}."]
    return "\n".join(lines) + "\n"


METRICS_INTRODUCTION = """\
`R` is float64 of shape `(T + 1, T)`: `R[t, j]` is the accuracy on task `j` after learning task `t`, both from 1, and
row 0 is before any training. Not measured is NaN, never 0; what is undefined for a single task is NaN; any average over
a set with a NaN is NaN. `clgym explain ID` prints a section, `clgym conformance` checks all of them against worked
matrices."""


def agents_page() -> str:
    """Return one section per agent."""
    lines = ["# Agents", "", STALE, "", "| id | method | family | paper |", "|---|---|---|---|"]
    for id, entry in entries("agents").items():
        paper = f"[{entry.spec.paper}](https://arxiv.org/abs/{entry.spec.paper[6:]})" if entry.spec.paper else "none"
        lines.append(f"| [`{id}`](#{id}) | {entry.spec.title} | {entry.spec.family} | {paper} |")
    for id, entry in entries("agents").items():
        spec = entry.spec
        lines += ["", f"## `{id}`", "", "```text", class_docstring(entry), "```", ""]
        own = {name: value for name, value in settings("agents", id).items() if name not in SHARED["agents"]}
        defaults = ", ".join(f"`{name}={value!r}`" for name, value in own.items())
        lines.append(f"Defaults: {defaults}.")
        if spec.code:
            lines += ["", f"Code read: {spec.code}."]
        if spec.departs:
            lines += ["", f"Departs: {spec.departs}"]
    return "\n".join(lines) + "\n"


def sources_page() -> str:
    """Return the page on sources, with the table of hub data sets."""
    lines = ["# Sources", "", STALE, "", SOURCES_INTRODUCTION, ""]
    lines += ["| data set | hub, revision | train / test rows | classes | licence | notes |"]
    lines += ["|---|---|---|---|---|---|"]
    for s in SETS.values():
        link = f"[`{s.repo}`](https://huggingface.co/datasets/{s.repo}/tree/{s.revision}) `{s.revision[:8]}`"
        rows = dict(s.sizes)
        train, test = (sum(rows[name] for name in split.split("+")) for split in (s.train_split, s.test_split))
        lines.append(f"| {s.title} | {link} | {train:,} / {test:,} | {s.classes} | {s.licence} | {s.notes} |")
    return "\n".join(lines) + "\n"


SOURCES_INTRODUCTION = """\
Every image scenario takes `source=`; it is part of a run's identity, and results of different sources never share a
table.

**`embedded`** (default): eleven domains of 32-pixel pictures and a tiny CLIP; see [worlds](worlds.md). Nothing is read
from outside the package.

**A folder** with one sub-folder per task:

```text
my_images/
  birds/   train.parquet  test.parquet        # columns image and label, ClassLabel or strings; shards train-*.parquet
  tools/   train/hammer/*.png  test/hammer/*.png  ...
           task.json                          # optional: title, description, template(s), flip
```

`clgym run CLIP-MTIL-v0 --agent codyra --source my_images`. The tiny CLIP is the default model;
`--with backbone=ViT-B-16/openai` takes another of open_clip's. Images are decoded in threads while the agent trains,
and memory does not grow with the folder. A malformed folder is refused with the name of the file and what to do.

**`hub`**: the eleven data sets of MTIL and ViT-B/16. `clgym download CLIP-MTIL-v0` fetches data (at the revisions
below) and weights into `$CLGYM_DATA` (default `~/.cache/clgym/data`) and the Hugging Face cache; nothing else ever
touches the network, and nothing falls back in silence. Train and test are the mirror's rows before the rule in the
notes. Prompt templates and class names are ZSCL's."""


PAGES = {"metrics.md": metrics_page, "agents.md": agents_page, "sources.md": sources_page}


def main() -> int:
    """Write the pages, or compare them; return the exit code."""
    stale = []
    for name, page in PAGES.items():
        path, text = HERE / name, page()
        if "--check" in sys.argv:
            stale += [name] if not path.exists() or path.read_text(encoding="utf-8") != text else []
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"Expected pages as the code states them; stale: {', '.join(stale)}. Run python docs/generate.py.")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
