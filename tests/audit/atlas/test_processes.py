"""What only a process of its own can show: kill -9, and how much memory a build takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = """
import json, os, signal, sys
from pathlib import Path
given = json.loads(sys.argv[1])
sys.path.insert(0, given["tests"])
from conftest import make
from audit.atlas import build
from audit.atlas import cells
from audit.events import SilentObserver

class Killing(SilentObserver):
    left = given["kill_after"]
    def should_stop(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

def resident(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

n_tiles = 0
meet = cells.meet
def counted(*arguments):
    global n_tiles
    n_tiles += 1
    return meet(*arguments)
cells.meet = counted

def work(made, folder, memory_bytes):
    options = dict(top=given["top"], support=given["support"], observer=Killing())
    return build(made.subject, made.activations, folder, memory_bytes=memory_bytes, **options)

if given["warm"]:
    work(make(given["kind"], "mlp_in", **{**given["shape"], "widths": [20]}), Path(given["warm"]), 10**8)
    n_tiles = 0
made = make(given["kind"], "mlp_in", **given["shape"])
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = resident("VmRSS")
work(made, Path(given["folder"]), given["memory_bytes"])
print(json.dumps({"peak": resident("VmHWM") - before, "n_tiles": n_tiles}))
"""


def start(folder: Path, **given: Any) -> subprocess.CompletedProcess[str]:
    whole = {"tests": str(Path(__file__).parent), "folder": str(folder), "kind": "clt", "kill_after": 0, "warm": "", **given}
    command = [sys.executable, "-c", SCRIPT, json.dumps(whole)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_build_that_was_killed_goes_on_and_equals_one_that_was_not(tmp_path: Path) -> None:
    given = {"shape": {"seed": 4, "n_layers": 4, "widths": [30, 20], "n_tokens": 150}, "top": 4, "support": 5, "memory_bytes": 10**8}
    killed = start(tmp_path / "killed", **given, kill_after=6)  # asked before each pair and each tile: in the third pair
    assert killed.returncode == -signal.SIGKILL
    begun = json.loads((tmp_path / "killed" / "manifest.json").read_bytes())
    assert begun["done"] == [[0, 1], [0, 2]]
    for folder in (tmp_path / "killed", tmp_path / "whole"):
        done = start(folder, **given)
        assert done.returncode == 0, done.stderr
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_small_budget_is_kept_with_the_same_result(tmp_path: Path) -> None:
    shape = {"seed": 4, "n_layers": 3, "widths": [1200], "n_tokens": 300, "density": 0.3, "d_model": 64}
    found = {}
    for budget in (40_000_000, 1_000_000_000):
        done = start(tmp_path / str(budget), shape=shape, top=4, support=5, memory_bytes=budget, warm=str(tmp_path / f"warm {budget}"))
        assert done.returncode == 0, done.stderr
        found[budget] = json.loads(done.stdout)
    small, large = found.values()
    assert small["peak"] < 40_000_000 < large["peak"] < 1_000_000_000
    assert small["n_tiles"] > large["n_tiles"] == 3
    assert files(tmp_path / "40000000") == files(tmp_path / "1000000000")
