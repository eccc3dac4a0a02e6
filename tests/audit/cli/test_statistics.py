"""``ulterior statistics`` as a user calls it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from audit.candidates.examples import top_examples
from audit.cli import diagnostics
from audit.cli.statistics import statistics
from audit.corpus import opening
from audit.records import FeatureId
from audit.subject import Subject
from audit.subject.activations import observe


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Say = Callable[..., Said]


def call(*arguments: object) -> Said:
    """Run ``statistics`` under the process's guard, so that codes and messages are those of ``ulterior``."""
    with CliRunner().isolation() as streams:
        code = diagnostics.guard(lambda: statistics.main([str(each) for each in arguments], prog_name="statistics", standalone_mode=False))
        said = Said(int(code), streams[0].getvalue().decode(), streams[1].getvalue().decode())
    assert "Traceback" not in said.out + said.err
    return said


@pytest.fixture(scope="module")
def built(organism_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """Statistics of a made organism, and what building them said; read them, do not write them."""
    folder = tmp_path_factory.mktemp("built") / "whole"
    said = call("build", "--subject", organism_dir, "--out", folder, "--candidates", "clt/1/5,clt/0/2", "--shard-tokens", 400)
    assert said.code == 0, said.err
    return folder, said


def told(said: Said, code: int, *words: str) -> None:
    assert said.code == code, said.err
    assert not said.out
    assert len(said.err.splitlines()) >= 3  # what, why, and what to do instead
    for word in words:
        assert word in said.err.replace("\n", " ")


def test_statistics_are_built_and_shown(built: tuple[Path, Said], tiny_subject: Subject) -> None:
    folder, said = built
    observed = observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus)
    assert said.out == f"{folder}: {observed.n_tokens:,} tokens of 120 documents in 8 shards\n"
    assert [line.split()[0] for line in said.err.splitlines()] == ["subject", "statistics"]
    shown = call("show", folder)
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert "corpus.jsonl" in lines[1]
    assert lines[2] == "co-activations of clt/0/2, clt/1/5"
    assert lines[3].split() == ["layer", "features", "tokens", "L0", "dead"]
    for layer, line in enumerate(lines[4:]):
        l0 = observed.layers[layer].nnz / observed.n_tokens
        dead = float((observed.counts(layer) == 0).mean())
        assert line.split() == [str(layer), "24", str(observed.n_tokens), f"{l0:.2f}", f"{dead:.2%}"]
    assert len(lines) == 7


def test_a_feature_is_shown_as_the_activations_have_it(built: tuple[Path, Said], tiny_subject: Subject, organism_dir: Path) -> None:
    folder, _ = built
    observed = observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus)
    rows, values = observed.column(1, 5)
    wide = values.astype(float)
    found = json.loads(call("show", folder, "clt/1/5", "--subject", organism_dir, "--json").out)
    assert (found["feature"], found["n_firing"]) == ("clt/1/5", len(rows))
    assert found["frequency"] == pytest.approx(len(rows) / observed.n_tokens, rel=1e-12)
    assert found["mean_activation"] == pytest.approx(wide.mean(), rel=1e-5)
    assert found["deviation"] == pytest.approx(wide.std(), rel=1e-4)
    assert found["max_activation"] == pytest.approx(wide.max(), rel=1e-5)
    best = top_examples(tiny_subject, observed, FeatureId("clt", 1, 5))
    assert [example["activation"] for example in found["examples"]] == pytest.approx([max(each.activations) for each in best], abs=1e-4)
    for example, other in zip(found["examples"], best, strict=True):
        assert example["tokens"][example["peak"]] == other.tokens[other.peak]
        assert len(example["tokens"]) == len(example["token_ids"])


def test_examples_are_text_where_the_tokenizer_is_and_ids_where_not(built: tuple[Path, Said], organism_dir: Path) -> None:
    folder, _ = built
    spelled = call("show", folder, "clt/1/5", "--subject", organism_dir / "model")
    assert spelled.code == 0
    assert spelled.err == ""
    assert "<bos>" in spelled.out or "<<" in spelled.out
    numbers = call("show", folder, "clt/1/5")
    assert numbers.code == 0
    assert "token ids; name it as --subject" in numbers.err
    peaks = [line.split("<<")[1].split(">>")[0] for line in numbers.out.splitlines() if "+" in line and "<<" in line]
    assert peaks
    assert all(peak.isdecimal() for peak in peaks)
    assert call("show", folder, "clt/1/5", "--quiet").err == ""


def test_a_plain_model_is_found_again_where_it_was(
    tiny_model_dir: Path, tiny_clt_dir: Path, tiny_corpus_path: Path, tmp_path: Path
) -> None:
    plain = ["--subject", tiny_model_dir, "--dictionary", tiny_clt_dir, "--corpus", tiny_corpus_path]
    said = call("build", *plain, "--out", tmp_path / "s", "--drop-activations", "--quiet", "--json")
    assert (said.code, said.err) == (0, "")
    manifest = json.loads(said.out)
    assert manifest == json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["has_activations"] is False
    shown = json.loads(call("show", tmp_path / "s", "clt/0/0", "--json").out)
    assert all(isinstance(token, str) for example in shown["examples"] for token in example["tokens"])


def test_a_text_too_large_to_be_held_is_streamed(
    tiny_model_dir: Path, tiny_clt_dir: Path, tiny_corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ["--subject", tiny_model_dir, "--dictionary", tiny_clt_dir, "--corpus", tiny_corpus_path]
    assert call("build", *plain, "--out", tmp_path / "held").code == 0
    monkeypatch.setattr(opening, "WHOLE_BYTES", tiny_corpus_path.stat().st_size * 9 // 10)
    assert call("build", *plain, "--out", tmp_path / "streamed").code == 0
    for name in ("statistics.safetensors", "manifest.json"):
        assert (tmp_path / "held" / name).read_bytes() == (tmp_path / "streamed" / name).read_bytes()


def test_a_second_call_goes_on_from_the_first(built: tuple[Path, Said], organism_dir: Path, tmp_path: Path) -> None:
    folder, _ = built
    out = tmp_path / "again"
    shutil.copytree(folder, out)
    (out / "manifest.json").unlink()
    (out / "statistics.safetensors").unlink()
    shards = sorted((out / "shards").glob("*.safetensors"))
    shards[3].write_bytes(b"damaged")
    before = {path: path.stat().st_mtime_ns for path in shards}
    assert time.time_ns() > max(before.values())
    arguments = ["--subject", organism_dir, "--out", out, "--candidates", "clt/0/2,clt/1/5", "--shard-tokens", 400]
    assert call("build", *arguments).code == 0
    assert [path for path in shards if path.stat().st_mtime_ns != before[path]] == [shards[3]]
    assert (out / "statistics.safetensors").read_bytes() == (folder / "statistics.safetensors").read_bytes()


def test_statistics_of_different_texts_are_merged(organism_dir: Path, tmp_path: Path) -> None:
    lines = (organism_dir / "corpus.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("a", lines[:70]), ("b", lines[70:])):
        Path(f"{name}.jsonl").write_text("".join(part))
        assert call("build", "--subject", organism_dir, "--corpus", f"{name}.jsonl", "--out", name).code == 0
    merged = call("merge", "a", "b", "--out", "c")
    assert merged.code == 0
    assert merged.out.startswith("c: ")
    assert "120 documents" in merged.out
    assert json.loads(call("merge", "b", "a", "--out", "d", "--json").out)["n_documents"] == 120
    assert Path("c/statistics.safetensors").read_bytes() == Path("d/statistics.safetensors").read_bytes()
    told(call("merge", "a", "b", "a", "--out", "e"), 2, "The same shard twice", "different texts")
    told(call("merge", "c", "b", "--out", "e"), 2, "The same shard twice")
    told(call("merge", "a", "b", "--out", "c"), 2, "holds statistics")
    assert not Path("e").exists()


def test_statistics_of_another_dictionary_are_not_merged(built: tuple[Path, Said], organism_dir: Path) -> None:
    assert call("build", "--subject", organism_dir, "--dictionary", "plt", "--out", "plt").code == 0
    told(call("merge", built[0], "plt", "--out", "both"), 2, "cannot be merged", "dictionary_sha256", "kind 'clt' and 'plt'")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--corpus", "missing.jsonl"], 2, ["missing.jsonl", "cannot be read"]),
        (["--corpus", "empty.jsonl"], 2, ["The corpus is empty", "empty.jsonl"]),
        (["--corpus", "broken.jsonl"], 2, ["broken.jsonl:2 is not JSON"]),
        (["--corpus", "binary.txt"], 2, ["binary.txt:1 is not UTF-8"]),
        (["--candidates", "clt/1/99"], 2, ["no clt/1/99"]),
        (["--candidates", "clt/1"], 2, ["'clt/1' does not name a feature"]),
        (["--shard-tokens", "0"], 2, ["Wrong call", "--shard-tokens"]),
        (["--shard-tokens", "99999999"], 2, ["Wrong size of a shard"]),
        (["--dictionary", "none"], 3, ["none"]),
    ],
)
def test_bad_input_of_a_build(organism_dir: Path, arguments: list[str], code: int, words: list[str]) -> None:
    Path("empty.jsonl").write_text("\n")
    Path("broken.jsonl").write_text('{"text": "You are"}\n{\n')
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    told(call("build", "--subject", organism_dir, "--out", "out", "--quiet", *arguments), code, *words)
    assert not Path("out").exists()


def test_bad_input_of_show(built: tuple[Path, Said], tiny_model_dir: Path) -> None:
    folder, _ = built
    told(call("show", "none"), 2, "No statistics", "'none' has no manifest.json", "Give a folder that 'ulterior statistics build' made.")
    told(call("show", folder, "clt/1/24"), 2, "no statistics of clt/1/24", "1 (24)")
    told(call("show", folder, "clt/7/0"), 2, "no statistics of clt/7/0")
    told(call("show", folder, "plt/1/5"), 2, "no statistics of plt/1/5")
    told(call("show", folder, "one"), 2, "'one' does not name a feature")
    told(call("show", folder, "clt/1/5", "--subject", "none"), 3, "There is no directory 'none'")
    shutil.copytree(tiny_model_dir, "other")
    chat = Path("other/chat_template.jinja")
    chat.write_text(chat.read_text() + " ")
    told(call("show", folder, "clt/1/5", "--subject", "other"), 3, "another tokenizer or chat template")
    shutil.copytree(folder, "damaged")
    path = Path("damaged/statistics.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\x00\x01")
    told(call("show", "damaged"), 3, "The statistics are damaged", "statistics.safetensors", "Copy them again")


def test_another_text_does_not_go_into_the_same_folder(built: tuple[Path, Said], organism_dir: Path) -> None:
    shutil.copytree(built[0], "out")
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    Path("short.jsonl").write_text("".join((organism_dir / "corpus.jsonl").read_text().splitlines(keepends=True)[:9]))
    said = call("build", "--subject", organism_dir, "--corpus", "short.jsonl", "--out", "out", "--quiet")
    told(said, 2, "This folder holds other statistics", "another corpus file ('corpus.jsonl' ", "Give another folder as --out.")
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


def test_a_folder_of_something_else_is_named() -> None:
    Path("atlas").mkdir()
    Path("atlas/manifest.json").write_text('{"format": "ulterior atlas", "version": 1}')
    told(call("show", "atlas"), 2, "This folder holds no statistics", "'ulterior atlas'")


def test_words_say_what_a_number_is_of(built: tuple[Path, Said], organism_dir: Path) -> None:
    shown = call("show", built[0], "clt/1/5", "--quiet").out
    assert "\nmean where it fires " in shown
    assert "\nstandard deviation where it fires " in shown
    assert "Activations are not merged" in call("merge", "--help").out
    Path("one.jsonl").write_text((organism_dir / "corpus.jsonl").read_text().splitlines()[0])
    assert " tokens of 1 document in 1 shard\n" in call("build", "--subject", organism_dir, "--corpus", "one.jsonl", "--out", "one").out


def test_totals_are_shown_without_loading_a_model(built: tuple[Path, Said]) -> None:
    code = "import sys; from audit.cli.statistics import statistics; statistics.main(sys.argv[1:], standalone_mode=False); " + (
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, "show", str(built[0])], capture_output=True, text=True, check=True)
    assert "dead" in done.stdout


def test_hostile_text_is_made_safe(built: tuple[Path, Said]) -> None:
    shutil.copytree(built[0], "hostile")
    path = Path("hostile/manifest.json")
    content = json.loads(path.read_text())
    content["corpora"][0]["name"] = content["model_path"] = "\x1b[2J\u202e[bold]"
    path.write_text(json.dumps(content))
    for said in (call("show", "hostile"), call("show", "hostile", "clt/1/5")):
        assert said.code == 0
        assert "\u241b[2J" in said.out + said.err
        assert not {"\x1b", "\u202e"} & set(said.out + said.err)
