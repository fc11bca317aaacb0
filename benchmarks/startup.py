"""How long a user waits before anything happens: ``import clgym`` and ``clgym list``, beside a bare interpreter.

Run ``python benchmarks/startup.py``. Whole processes, wall seconds, minimum and median of the rounds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "python -c 'import gymnasium'": ("-c", "import gymnasium"),
    "python -c 'import clgym'": ("-c", "import clgym"),
    "clgym list": ("-m", "clgym", "list"),
}
ROUNDS = 7


def main() -> None:
    """Print a line per command."""
    for name, words in COMMANDS.items():
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        print(f"{name:<32} min {min(times):.3f} s   median {statistics.median(times):.3f} s")
    heavy = "import clgym, sys; print(sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", heavy],
        check=True,
        capture_output=True,
        text=True,
    )
    print(f"heavy packages that `import clgym` loads: {loaded.stdout.strip()}")


if __name__ == "__main__":
    main()
