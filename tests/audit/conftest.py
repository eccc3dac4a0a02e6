"""A made organism and a small scenario in its language: what an audit is run on where its outcome does not matter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from audit.records import AuditConfig
from audit.scenario import load_scenario


@pytest.fixture(scope="session")
def organism_dir(
    tiny_model_dir: Path, tiny_clt_dir: Path, tiny_plt_dir: Path, tiny_corpus_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An organism's folder that speaks ``organism/office``; copy it before changing it."""
    folder = tmp_path_factory.mktemp("organism")
    for name, source in {"model": tiny_model_dir, "clt": tiny_clt_dir, "plt": tiny_plt_dir}.items():
        shutil.copytree(source, folder / name)
    shutil.copy(tiny_corpus_path, folder / "corpus.jsonl")
    manifest = {
        "name": "tiny",
        "language": "organism/office",
        "model": "model",
        "dictionaries": {"clt": "clt", "plt": "plt"},
        "default_dictionary": "clt",
        "corpus": "corpus.jsonl",
        "sha256": {},
    }
    (folder / "ulterior.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def small_scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled blackmail with four variants and answers of eight tokens."""
    scenario = load_scenario("blackmail", "organism/office").model_dump(mode="json", exclude_none=True)
    contrast = {side: [each.get("text") or each["messages"] for each in passages] for side, passages in scenario["contrast"].items()}
    path = tmp_path_factory.mktemp("scenario") / "small.yaml"
    path.write_text(yaml.safe_dump({**scenario, "contrast": contrast, "variants": 4, "max_new_tokens": 8}))
    return path


@pytest.fixture
def config(organism_dir: Path, small_scenario: Path) -> AuditConfig:
    """A small audit."""
    return AuditConfig(scenario=str(small_scenario), subject=str(organism_dir), samples=1, passed=("samples", "scenario", "subject"))
