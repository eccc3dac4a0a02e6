"""What only a process of its own can show: kill -9, and how much memory a build takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from audit.atlas import build
from audit.events import SilentObserver

SCRIPT = """
import json, os, signal, sys
from pathlib import Path
given = json.loads(sys.argv[1])
sys.path.insert(0, given["tests"])
from conftest import make
from audit.atlas import build, cells
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

def work(name, memory_bytes, made):
    options = dict(top=given["top"], support=given["support"], observer=Killing())
    build(made.subject, made.activations, Path(given["folder"]) / name, memory_bytes=memory_bytes, **options)

if len(given["budgets"]) > 1:
    work("small", 10**8, make("clt", "mlp_in", **{**given["shape"], "widths": [20]}))  # loads and sets up what is loaded late
made, found = make("clt", "mlp_in", **given["shape"]), {}
for budget in given["budgets"]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, n_tiles = resident("VmRSS"), 0
    work(str(budget), budget, made)
    found[budget] = {"peak": resident("VmHWM") - before, "n_tiles": n_tiles}
print(json.dumps(found))
"""


def start(folder: Path, **given: Any) -> subprocess.CompletedProcess[str]:
    whole = {"tests": str(Path(__file__).parent), "folder": str(folder), "kill_after": 0, **given}
    command = [sys.executable, "-c", SCRIPT, json.dumps(whole)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_build_that_was_killed_goes_on_and_equals_one_that_was_not(make: Any, tmp_path: Path) -> None:
    shape = {"seed": 4, "n_layers": 4, "widths": [30, 20], "n_tokens": 150}
    # Asked before each pair of layers and each tile: it dies in the third pair.
    killed = start(tmp_path, shape=shape, top=4, support=5, budgets=[10**8], kill_after=6)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert json.loads((tmp_path / "100000000" / "manifest.json").read_bytes())["done"] == [[0, 1], [0, 2]]
    made = make("clt", "mlp_in", **shape)
    for name in ("100000000", "whole"):
        build(made.subject, made.activations, tmp_path / name, top=4, support=5, observer=SilentObserver())
    assert files(tmp_path / "100000000") == files(tmp_path / "whole")


def test_a_small_budget_is_kept_with_the_same_result(tmp_path: Path) -> None:
    shape = {"seed": 4, "n_layers": 3, "widths": [1200], "n_tokens": 300, "density": 0.3, "d_model": 64}
    done = start(tmp_path, shape=shape, top=4, support=5, budgets=[40_000_000, 1_000_000_000])
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout).values()
    assert small["peak"] < 40_000_000 < large["peak"] < 1_000_000_000
    assert small["n_tiles"] > large["n_tiles"] == 3
    assert files(tmp_path / "40000000") == files(tmp_path / "1000000000")
