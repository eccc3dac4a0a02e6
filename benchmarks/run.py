"""Time of the main job: ``ulterior run blackmail`` on the bundled subject, from process start to report.

    python benchmarks/run.py

runs it in fresh processes with a new ledger each, and writes benchmarks/results/run.json, and what the last run printed to
run.txt. Process start, imports and
the report are included; the first run after an installation is slower, since fonts and bytecode are cached then.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from audit.ledger import Ledger

RUNS = 3
MAIN = "from audit.cli import main; main()"
RESULT = Path(__file__).parent / "results" / "run.json"
OUTPUT = Path(__file__).parent / "results" / "run.txt"


def one_run() -> tuple[float, float, int]:
    """(wall seconds, CPU seconds, rollouts) of one audit."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", MAIN, "run", "blackmail"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "140"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env=environment)
        wall = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        OUTPUT.write_text(done.stdout.replace(folder + "/", ""), encoding="utf-8")
        with Ledger(Path(folder) / "ulterior.db", readonly=True) as ledger:
            rollouts = ledger.audits()[0].n_rollouts
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, rollouts


def main() -> None:
    """Measure, print and save."""
    runs = [one_run() for _ in range(RUNS)]
    walls, cpus = [run[0] for run in runs], [run[1] for run in runs]
    result = {
        "command": "ulterior run blackmail",
        "runs": RUNS,
        "rollouts": runs[0][2],
        "wall_seconds": {"median": round(statistics.median(walls), 1), "all": [round(wall, 1) for wall in walls]},
        "cpu_seconds": {"median": round(statistics.median(cpus), 1), "all": [round(cpu, 1) for cpu in cpus]},
        "machine": {
            "cores": os.cpu_count(),
            "processor": _processor(),
            "python": platform.python_version(),
            "torch": version("torch"),
            "system": platform.system(),
        },
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
