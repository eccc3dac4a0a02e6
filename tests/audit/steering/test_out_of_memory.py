"""A process that may not have the memory that it plans for: rows are halved, and the answers are those of one that may."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, resource, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
from audit.events import SilentObserver
from audit.steering import memory, scheduling
from audit.steering.generation import Request, generate
from audit.steering.sampling import uniforms
from audit.steering.strengths import Scales
from audit.subject import load_subject

torch.set_num_threads(1)
model, dictionary, corpus, more, rows = sys.argv[1:]
subject = load_subject(Path(model), Path(dictionary), Path(corpus), observer=SilentObserver())
begun = []
plan = memory.plan_memory
def noted(*args, **options):
    begun.append(plan(*args, **options).rows)
    return plan(*args, **options)
memory.free_bytes = lambda device: 10**15
scheduling.plan_memory = noted
drawn = np.stack([uniforms(0, 0, sample, 200) for sample in range(2048)])
ends = tuple(range(0, 482, 3))
request = Request(prompt_ids=subject.corpus[0][:20], treatments=(None,), uniforms=drawn, temperature=1.0, ends=ends, rows=int(rows))
scales = Scales(residual_norm=(1.0,) * 3, max_activation=(np.zeros(0, np.float32),) * 3)
list(generate(subject, replace(request, rows=4, uniforms=drawn[:4]), scales, observer=SilentObserver()))  # loads what is loaded once
begun.clear()
if int(more):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(more), resource.RLIM_INFINITY))
found = {each.sample: each.token_ids for each in generate(subject, request, scales, observer=SilentObserver())}
print(json.dumps({"begun": begun, "tokens": [found[sample] for sample in range(2048)]}))
"""


def written(model: Path, dictionary: Path, corpus: Path, *, more: int, rows: int) -> dict[str, list[object]]:
    """What the program prints; ``more`` bytes of address space beyond what it has when it begins, 0 for as many as it likes."""
    command = [sys.executable, "-c", PROGRAM, *map(str, (model, dictionary, corpus, more, rows))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, list[object]] = json.loads(done.stdout)
    return found


def test_a_process_without_memory_writes_half_as_many_rows_at_a_time(
    tiny_model_dir: Path, tiny_clt_dir: Path, tiny_corpus_path: Path
) -> None:
    """2,048 rows of 200 tokens have keys and values of 157 MB."""
    free = written(tiny_model_dir, tiny_clt_dir, tiny_corpus_path, more=0, rows=256)
    tight = written(tiny_model_dir, tiny_clt_dir, tiny_corpus_path, more=100_000_000, rows=2048)
    assert free["begun"] == [256]
    assert tight["begun"][0] == 2048
    assert tight["begun"] == [2048 >> n for n in range(len(tight["begun"]))]
    assert len(tight["begun"]) > 1
    assert tight["tokens"] == free["tokens"]
    assert len({len(tokens) for tokens in free["tokens"]}) > 5  # type: ignore[arg-type]
