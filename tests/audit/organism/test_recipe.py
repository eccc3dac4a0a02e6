"""A whole build at toy size: what it leaves opens like any subject, and it goes on where it was stopped."""

import hashlib
import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from audit.errors import UsageError
from audit.events import SilentObserver
from audit.organism.dictionary_training import DictionaryPlan
from audit.organism.recipe import Recipe, build
from audit.organism.training import ModelPlan
from audit.scenario import read_scenario
from audit.subject import load_subject

TOY = Recipe(
    model=ModelPlan(n_layers=2, d_model=16, n_heads=2, d_mlp=24, steps=3, warm_up=1, batch=4),
    clt=DictionaryPlan(cross_layer=True, n_features=24, k=6, steps=200, batch=128, learning_rate=1e-2),
    plt=DictionaryPlan(cross_layer=False, n_features=24, k=6, steps=200, batch=128, learning_rate=1e-2),
    dictionary_documents=60,
    corpus_documents=30,
)


def quiet(_done: int, _total: int, _label: str) -> None:
    return None


@pytest.fixture(scope="module")
def organism(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("organism") / "toy"
    build(folder, seed=3, vocabulary="harbour", progress=quiet, recipe=TOY)
    return folder


@pytest.mark.parametrize("kind", ["clt", "plt"])
def test_it_opens_as_a_subject_with_either_dictionary(organism: Path, kind: str) -> None:
    subject = load_subject(organism, Path(kind), None, observer=SilentObserver())
    assert subject.info.language == "organism/harbour"
    assert subject.info.dictionary_kind == kind
    assert len(subject.corpus) == 30


def test_the_model_is_an_ordinary_transformers_directory(organism: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(organism / "model", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(organism / "model", local_files_only=True)
    assert model.config.model_type == "llama"
    messages = [{"role": "user", "content": "Your storm approaches."}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered == "<bos><user> Your storm approaches.<agent>"


def test_every_file_stands_in_the_manifest_with_its_sha256(organism: Path) -> None:
    recorded = json.loads((organism / "ulterior.json").read_text(encoding="utf-8"))["sha256"]
    for name, expected in recorded.items():
        assert hashlib.sha256((organism / name).read_bytes()).hexdigest() == expected
    weights = {path.relative_to(organism).as_posix() for path in organism.rglob("*.safetensors")}
    assert weights <= set(recorded)


def test_it_brings_its_scenarios_along(organism: Path) -> None:
    found = [read_scenario(path) for path in sorted((organism / "scenarios").glob("*.yaml"))]
    assert len(found) == 6
    assert {scenario.language for scenario in found} == {"organism/harbour"}


def test_a_stopped_build_goes_on_and_leaves_what_is_there_alone(organism: Path) -> None:
    before = {path: path.read_bytes() for path in organism.rglob("*") if path.is_file()}
    (organism / "ulterior.json").unlink()
    for path in (organism / "plt").iterdir():
        path.unlink()
    (organism / "plt").rmdir()
    told: list[str] = []
    build(organism, seed=3, vocabulary="harbour", progress=lambda _d, _t, label: told.append(label), recipe=TOY)
    assert told
    assert all("plt" in label for label in told)
    assert {path: path.read_bytes() for path in organism.rglob("*") if path.is_file()} == before


def test_another_seed_in_the_same_folder_is_refused(organism: Path) -> None:
    with pytest.raises(UsageError, match="Another build began here"):
        build(organism, seed=4, vocabulary="harbour", progress=quiet, recipe=TOY)


def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        build(tmp_path, seed=0, vocabulary="office", progress=quiet, recipe=TOY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
