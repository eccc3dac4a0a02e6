"""A pass over a corpus: what it keeps, and that it goes on from wherever it was interrupted."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from audit.corpus import artefact as artefacts
from audit.corpus import files
from audit.corpus.activations import open_activations, open_documents
from audit.corpus.artefact import STATISTICS, merge_artefacts, open_statistics
from audit.corpus.counting import count
from audit.corpus.identity import key_of
from audit.corpus.scanning import ScanPlan, scan
from audit.corpus.shards import shard_sha256
from audit.errors import AuditError, Interrupted, SubjectError, UsageError
from audit.events import SilentObserver, StepProgress
from audit.records import FeatureId
from audit.subject.activations import observe

QUIET = SilentObserver()
CANDIDATES = (FeatureId("clt", 0, 3), FeatureId("clt", 1, 7))
SMALL = ScanPlan(candidates=CANDIDATES, shard_tokens=120, batch_tokens=1)


class Watching:
    """Keeps the events, and stops after so many shards."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.events: list[StepProgress] = []
        self.stop_after = stop_after

    def notify(self, event):
        self.events.append(event)

    def should_stop(self):
        return len(self.events) >= self.stop_after


@pytest.fixture(scope="module")
def whole(tiny_subject, tiny_corpus_path, tmp_path_factory):
    """The tiny corpus in many small shards; read it, do not write it."""
    folder = tmp_path_factory.mktemp("whole")
    scan(tiny_subject, tiny_corpus_path, folder, plan=SMALL, observer=QUIET)
    return folder


def shard_files(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "shards").glob("*.safetensors")}


def contents(folder):
    return (folder / STATISTICS).read_bytes()


def test_statistics_are_those_of_all_documents_at_once(tiny_subject, whole, same):
    documents = tiny_subject.corpus
    observed = observe(tiny_subject.model, tiny_subject.dictionary, documents, batch_tokens=1)
    found = open_statistics(whole, tiny_subject)
    same(found.statistics, count(observed, documents, key_of(tiny_subject, CANDIDATES), "any"), but_shards=True)
    assert len(found.manifest.shards) > 20
    assert found.manifest.n_documents == 120
    assert len(found.statistics.pairs.candidate)
    assert found.manifest.corpora[0].sha256 == tiny_subject.info.corpus_sha256
    assert (found.manifest.key.divided, found.manifest.input_hook) == (True, "mlp_in")


def test_the_split_changes_nothing(tiny_subject, tiny_corpus_path, whole, same, tmp_path):
    for shard_tokens in (300, 700, 10**6):
        folder = tmp_path / str(shard_tokens)
        plan = replace(SMALL, shard_tokens=shard_tokens, keep_activations=False)
        manifest = scan(tiny_subject, tiny_corpus_path, folder, plan=plan, observer=QUIET)
        same(open_statistics(folder).statistics, open_statistics(whole).statistics, but_shards=True)
        assert len(manifest.shards) == {300: 11, 700: 5, 10**6: 1}[shard_tokens]


def test_activations_are_those_that_were_observed(tiny_subject, whole):
    """Bit by bit, since every document went through the model alone, whatever shard it is in."""
    expected = observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus, batch_tokens=1)
    found = open_activations(whole)
    assert open_documents(whole) == tiny_subject.corpus
    for name in ("token_ids", "document", "position", "sigma"):
        assert getattr(found, name).dtype == getattr(expected, name).dtype
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        for name in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_documents_that_go_together_agree_but_for_rounding(tiny_subject, tiny_corpus_path, whole, tmp_path):
    """The order in which a matrix product sums depends on how many rows it has, so only the last digits may differ."""
    scan(tiny_subject, tiny_corpus_path, tmp_path, plan=ScanPlan(shard_tokens=1000), observer=QUIET)
    together, alone = open_activations(tmp_path), open_activations(whole)
    for one, other in zip(together.layers, alone.layers, strict=True):
        np.testing.assert_allclose(one.toarray(), other.toarray(), atol=1e-5)
    np.testing.assert_allclose(together.sigma, alone.sigma, rtol=1e-5)


@pytest.mark.parametrize("name", ["tiny_plt_subject", "tiny_sae_subject", "tiny_vector_subject"])
def test_other_dictionaries(request, name, tiny_corpus_path, tmp_path):
    subject = request.getfixturevalue(name)
    scan(subject, tiny_corpus_path, tmp_path, plan=ScanPlan(), observer=QUIET)
    found = open_statistics(tmp_path, subject).statistics
    observed = observe(subject.model, subject.dictionary, subject.corpus)
    assert [layer.n_firing.tolist() for layer in found.layers] == [observed.counts(layer).tolist() for layer in range(3)]
    assert found.key.divided == (name == "tiny_plt_subject")
    assert found.key.kind == subject.dictionary.kind


def test_finished_shards_are_not_made_again(tiny_subject, tiny_corpus_path, tmp_path, whole, monkeypatch):
    with pytest.raises(Interrupted):
        scan(tiny_subject, tiny_corpus_path, tmp_path, plan=SMALL, observer=Watching(stop_after=9))
    before = shard_files(tmp_path)
    assert len(before) == 9
    assert not (tmp_path / "manifest.json").exists()
    scan(tiny_subject, tiny_corpus_path, tmp_path, plan=SMALL, observer=QUIET)
    after = shard_files(tmp_path)
    assert before.items() <= after.items()
    assert after.keys() == shard_files(whole).keys()
    assert contents(tmp_path) == contents(whole)
    monkeypatch.setattr("audit.corpus.scanning.observe", None)  # nothing is left to do
    scan(tiny_subject, tiny_corpus_path, tmp_path, plan=SMALL, observer=QUIET)
    assert contents(tmp_path) == contents(whole)
    scan(tiny_subject, tiny_corpus_path, tmp_path, plan=replace(SMALL, keep_activations=False), observer=QUIET)
    assert contents(tmp_path) == contents(whole)


def test_activations_that_are_no_matrix_are_refused(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    victim = min((tmp_path / "shards").glob("*.safetensors"))
    content = files.read_arrays(victim)
    outside = {**content.arrays, "kept.001.indices": content.arrays["kept.001.indices"] + 24}
    files.write_arrays(victim, files.ArrayFile(head=content.head, arrays=outside))
    with pytest.raises(SubjectError, match=rf"{victim.name}' has activations of layer 1 that are no matrix of 24 features"):
        open_activations(tmp_path)
    changed(victim)
    for opened in (open_activations, open_documents):
        with pytest.raises(SubjectError, match="has changed since it was made"):
            opened(tmp_path)


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_other_statistics_are_never_written_over(tiny_subject, tiny_plt_subject, tiny_corpus_path, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = everything(out)
    other = tmp_path / "other.jsonl"
    other.write_bytes(b"".join(tiny_corpus_path.read_bytes().splitlines(keepends=True)[:20]))
    special = replace(tiny_subject, model=replace(tiny_subject.model, special_ids=tiny_subject.model.special_ids | {9}))
    narrow = replace(tiny_subject, model=replace(tiny_subject.model, dtype=torch.bfloat16))
    renamed = replace(tiny_subject, info=replace(tiny_subject.info, model_sha256="f" * 64))
    plain = ScanPlan(shard_tokens=120)
    for subject, corpus, words in (
        (tiny_plt_subject, tiny_corpus_path, "another dictionary"),
        (special, tiny_corpus_path, "another tokenizer or chat template"),
        (narrow, tiny_corpus_path, r"another dtype \(float32, not bfloat16\)"),
        (renamed, tiny_corpus_path, "another model .*, not ffffffffffffffff"),
        (tiny_subject, other, f"another corpus file \\('{tiny_corpus_path.name}' .*, not 'other.jsonl' "),
    ):
        with pytest.raises(UsageError, match=f"This folder holds other statistics: .*{words}.*Give another folder as --out"):
            scan(subject, corpus, out, plan=plain, observer=QUIET)
        assert everything(out) == before


@pytest.mark.parametrize("content", ["{", '{"format": "ulterior atlas", "version": 1}', "[]"])
def test_a_manifest_of_something_else_is_never_written_over(tiny_subject, tiny_corpus_path, tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UsageError, match="Give another folder as --out"):
        scan(tiny_subject, tiny_corpus_path, tmp_path, plan=SMALL, observer=QUIET)
    assert everything(tmp_path) == {Path("manifest.json"): content.encode()}
    assert not (tmp_path / "shards").exists()


def test_shards_that_the_new_manifest_does_not_list_are_removed(tiny_subject, tiny_corpus_path, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    mine = tmp_path / "shards" / "mine.safetensors"
    mine.write_bytes(b"mine")
    plan = ScanPlan(candidates=CANDIDATES[1:], shard_tokens=700, keep_activations=False)
    with pytest.raises(Interrupted):
        scan(tiny_subject, tiny_corpus_path, tmp_path, plan=plan, observer=Watching(stop_after=2))
    assert shard_files(whole).keys() < shard_files(tmp_path).keys()
    manifest = scan(tiny_subject, tiny_corpus_path, tmp_path, plan=plan, observer=QUIET)
    assert shard_files(tmp_path).keys() == {mine.name, *(f"{each.sha256}.safetensors" for each in manifest.shards)}
    assert open_statistics(tmp_path).manifest == manifest


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"format": "ulterior atlas", "version": 1, "key": {}}', "the manifest of something else: its format is 'ulterior atlas'"),
        ('{"name": "chrome", "icons": []}', "with 'name', 'icons' in it"),
        ("{}", "with nothing in it"),
        ("[1, 2]", "JSON of something else"),
    ],
)
def test_a_folder_of_something_else_holds_no_statistics(tmp_path, content, words):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UsageError, match=f"This folder holds no statistics: .*manifest.json' seems to be .*{words}") as found:
        open_statistics(tmp_path)
    assert "damaged" not in str(found.value)
    assert "Copy" not in str(found.value)


def put(name, at, value):
    def spoil(arrays):
        arrays[f"kept.{name}"] = arrays[f"kept.{name}"].copy()
        arrays[f"kept.{name}"][at] = value

    return spoil


def swap(arrays, name, at):
    arrays[name] = arrays[name].copy()
    arrays[name][[at, at + 1]] = arrays[name][[at + 1, at]]


def swap_in_a_row(arrays):
    bounds = arrays["kept.001.indptr"]
    row = int(np.flatnonzero(np.diff(bounds) >= 2)[0])
    swap(arrays, "kept.001.indices", int(bounds[row]))


def shorter(name, by=1):
    return lambda arrays: arrays.update({f"kept.{name}": arrays[f"kept.{name}"][:-by]})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda arrays: arrays.pop("kept.sigma"), "lacks the array 'kept.sigma'"),
        (lambda arrays: arrays.update({"kept.document": arrays["kept.document"].astype(np.int64)}), "of int64"),
        (lambda arrays: arrays.update({"kept.sigma": arrays["kept.sigma"][:, 0]}), "expected float32 of 2 axes"),
        (shorter("documents.ids"), "whose ends are not those"),
        (put("documents.ends", 0, 10**6), "whose ends are not those"),
        (put("documents.ids", 0, -1), "a token id below 0"),
        (shorter("token_ids"), "has columns of"),
        (shorter("document"), "has columns of"),
        (shorter("position"), "has columns of"),
        (shorter("sigma"), "has sigma of"),
        (lambda arrays: arrays.update({"kept.sigma": arrays["kept.sigma"][:, 1:]}), "has sigma of"),
        (put("document", -1, 10**6), "to 1000000, expected 0 to"),
        (put("document", 0, -1), "has tokens of documents -1 to"),
        (put("document", 0, 1), "at positions outside|not in the order"),
        (put("position", 0, -1), "at positions outside"),
        (put("position", 0, 10**6), "at positions outside"),
        (lambda arrays: swap(arrays, "kept.position", 0), "not in the order"),
        (put("token_ids", 2, 3**9), "not those of its documents"),
        (put("sigma", (0, 1), np.nan), "sigma that is not finite"),
        (put("sigma", (0, 1), np.inf), "sigma that is not finite"),
        (put("sigma", (0, 1), 0.0), "sigma that is not finite"),
        (put("001.data", 3, np.nan), "layer 1 .* not finite and above 0"),
        (put("001.data", 3, np.inf), "layer 1 .* not finite and above 0"),
        (put("001.data", 3, 0.0), "layer 1 .* not finite and above 0"),
        (put("001.data", 3, -1.0), "layer 1 .* not finite and above 0"),
        (put("002.indices", 0, 24), "layer 2 .* of 24 features: its indices are .* to 24, expected 0 to 23"),
        (put("002.indices", 0, -1), "layer 2 .* its indices are -1"),
        (swap_in_a_row, "layer 1 .* do not rise"),
        (shorter("001.indices"), "layer 1 .* activations and"),
        (shorter("001.indptr"), "layer 1 .* rows, expected"),
        (put("001.indptr", 1, -5), "layer 1 .* bounds of its rows"),
        (put("001.indptr", -1, 5), "layer 1 .* bounds of its rows"),
        (put("001.indptr", 0, 1), "layer 1 .* bounds of its rows"),
    ],
)
def test_activations_that_cannot_be_true_are_refused(whole, tmp_path, spoil, words):
    """The file has the digest of what is in it, and is listed: only its content is wrong."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    victim = min((tmp_path / "shards").glob("*.safetensors"))
    content = files.read_arrays(victim)
    arrays = dict(content.arrays)
    spoil(arrays)
    files.write_arrays(victim, files.ArrayFile(head=content.head, arrays=arrays))
    for opened in (open_activations, open_documents):
        with pytest.raises(SubjectError, match=rf"The statistics are damaged: '.*{victim.name}' .*({words}).*Copy them again"):
            opened(tmp_path)


def torn(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def another(path):
    path.write_bytes(min(path.parent.glob("*.safetensors"), key=lambda other: (other == path, other)).read_bytes())


@pytest.mark.parametrize("damage", [torn, changed, another, partial(Path.write_bytes, data=b""), partial(Path.write_text, data="{}")])
def test_a_damaged_shard_is_not_done(tiny_subject, tiny_corpus_path, tmp_path, whole, damage):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = shard_files(tmp_path)
    victim = sorted((tmp_path / "shards").glob("*.safetensors"))[5]
    damage(victim)
    (tmp_path / "shards" / "left.safetensors.partial").write_bytes(b"torn")
    scan(tiny_subject, tiny_corpus_path, tmp_path, plan=SMALL, observer=QUIET)
    after = shard_files(tmp_path)
    assert {name for name in after if before[name] != after[name]} == {victim.name}
    assert contents(tmp_path) == contents(whole)


def test_shards_without_activations_or_of_other_candidates_are_made_again(tiny_subject, tiny_corpus_path, tmp_path, whole, same):
    dropping = ScanPlan(candidates=CANDIDATES[:1], shard_tokens=700, batch_tokens=1, keep_activations=False)
    scan(tiny_subject, tiny_corpus_path, tmp_path, plan=dropping, observer=QUIET)
    with pytest.raises(UsageError, match="--drop-activations"):
        open_activations(tmp_path)
    scan(tiny_subject, tiny_corpus_path, tmp_path, plan=replace(dropping, candidates=CANDIDATES), observer=QUIET)
    same(open_statistics(tmp_path).statistics, open_statistics(whole).statistics, but_shards=True)
    scan(tiny_subject, tiny_corpus_path, tmp_path, plan=replace(SMALL, shard_tokens=700), observer=QUIET)
    assert open_activations(tmp_path).n_tokens == open_statistics(whole).statistics.n_tokens


def test_progress_counts_bytes_and_tells_rate_and_time_left(tiny_subject, tiny_corpus_path, tmp_path):
    seen = Watching()
    scan(tiny_subject, tiny_corpus_path, tmp_path, plan=SMALL, observer=seen)
    assert [event.step for event in seen.events] == ["statistics"] * len(seen.events)
    done = [event.done for event in seen.events]
    assert done == sorted(set(done))
    assert done[-1] == tiny_corpus_path.stat().st_size == seen.events[0].total
    assert all(" tokens/s, " in event.label and event.label.endswith(" left") for event in seen.events)
    assert seen.events[0].label.startswith("1 shard, ")
    assert seen.events[-1].label.endswith(", 0 s left")
    again = Watching()
    scan(tiny_subject, tiny_corpus_path, tmp_path, plan=SMALL, observer=again)
    assert again.events[-1].label == f"{len(done)} shards"


def test_a_text_that_repeats_itself_counts_as_often_as_it_is_there(tiny_subject, tiny_corpus_path, tmp_path):
    lines = tiny_corpus_path.read_bytes().splitlines(keepends=True)[:12]
    for name, content in (("once", lines), ("twice", lines * 2)):
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(content))
        scan(tiny_subject, tmp_path / f"{name}.jsonl", tmp_path / name, plan=replace(SMALL, shard_tokens=1), observer=QUIET)
    one, two = (open_statistics(tmp_path / name).statistics for name in ("once", "twice"))
    assert (len(one.shards), len(two.shards)) == (12, 24)
    assert set(one.shards) < set(two.shards)
    assert two.layers[1].n_firing.tolist() == (2 * one.layers[1].n_firing).tolist()
    assert two.layers[1].examples.document.tolist() == one.layers[1].examples.document.tolist()


def test_parts_of_a_corpus_merge_to_the_whole(tiny_subject, tiny_corpus_path, tmp_path, whole, same):
    lines = tiny_corpus_path.read_bytes().splitlines(keepends=True)
    for name, part in (("a", lines[:50]), ("b", lines[50:90]), ("c", lines[90:])):
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(part))
        scan(tiny_subject, tmp_path / f"{name}.jsonl", tmp_path / name, plan=SMALL, observer=QUIET)
    merged = merge_artefacts([tmp_path / "c", tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    found = open_statistics(tmp_path / "out", tiny_subject)
    same(found.statistics, open_statistics(whole).statistics, but_shards=True)
    assert found.manifest == merged
    assert sorted(source.name for source in merged.corpora) == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert not merged.has_activations
    merge_artefacts([tmp_path / "b", tmp_path / "c", tmp_path / "a"], tmp_path / "other")
    assert contents(tmp_path / "out") == contents(tmp_path / "other")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (tmp_path / "other" / "manifest.json").read_bytes()
    for again in ([tmp_path / "a", tmp_path / "a"], [tmp_path / "out", tmp_path / "b"]):
        with pytest.raises(UsageError, match="The same shard twice"):
            merge_artefacts(again, tmp_path / "refused")
    with pytest.raises(UsageError, match="holds statistics"):
        merge_artefacts([tmp_path / "a", tmp_path / "b"], tmp_path / "out")


def test_statistics_can_be_shipped_without_shards(tiny_subject, whole, tmp_path, same):
    for name in (STATISTICS, "manifest.json"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    same(open_statistics(tmp_path, tiny_subject).statistics, open_statistics(whole).statistics)
    with pytest.raises(UsageError, match=r"'.*\.safetensors' is missing"):
        open_activations(tmp_path)


def test_another_subject_is_refused(tiny_subject, tiny_plt_subject, whole):
    with pytest.raises(SubjectError, match="another dictionary.*this subject's is .*statistics build") as found:
        open_statistics(whole, tiny_plt_subject)
    assert found.value.exit_code == 3
    other = replace(tiny_subject, info=replace(tiny_subject.info, model_sha256="f" * 64))
    with pytest.raises(SubjectError, match="another model.*ffffffffffffffff"):
        open_statistics(whole, other)
    special = replace(tiny_subject.model, special_ids=tiny_subject.model.special_ids | {9})
    with pytest.raises(SubjectError, match="another tokenizer or chat template"):
        open_statistics(whole, replace(tiny_subject, model=special))
    narrow = replace(tiny_subject.model, dtype=torch.bfloat16)
    with pytest.raises(SubjectError, match="another dtype: .*in float32, .*opened in bfloat16.* Pass --dtype float32"):
        open_statistics(whole, replace(tiny_subject, model=narrow))


def manifest_with(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda folder: (folder / STATISTICS).unlink(), "is missing"),
        (lambda folder: changed(folder / STATISTICS), "not the file of the manifest"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json' cannot be read"),
        (lambda folder: manifest_with(folder, n_tokens="many"), "n_tokens"),
        (lambda folder: manifest_with(folder, format_version=99), "format version 99"),
        (lambda folder: manifest_with(folder, shards=[]), "does not belong to the manifest"),
    ],
)
def test_damaged_statistics_are_refused(whole, tmp_path, spoil, match):
    for name in (STATISTICS, "manifest.json"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    spoil(tmp_path)
    with pytest.raises(SubjectError, match=match):
        open_statistics(tmp_path)


def test_a_build_that_did_not_end_is_no_artefact(tiny_subject, tiny_corpus_path, tmp_path):
    with pytest.raises(UsageError, match=r"has no manifest\.json\. Give a folder that 'ulterior statistics build' made\."):
        open_statistics(tmp_path / "none")
    with pytest.raises(Interrupted):
        scan(tiny_subject, tiny_corpus_path, tmp_path, plan=SMALL, observer=Watching(stop_after=2))
    with pytest.raises(UsageError, match="did not end"):
        open_statistics(tmp_path)


def test_a_corpus_without_content_is_refused(tiny_subject, tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n{"text": "<bos>"}\n')
    with pytest.raises(UsageError, match="hold no tokens"):
        scan(tiny_subject, tmp_path / "empty.jsonl", tmp_path / "out", observer=QUIET)
    with pytest.raises(UsageError, match="cannot be read"):
        scan(tiny_subject, tmp_path / "missing.jsonl", tmp_path / "out", observer=QUIET)
    with pytest.raises(UsageError, match="Wrong size of a shard"):
        scan(tiny_subject, tmp_path / "empty.jsonl", tmp_path / "out", plan=ScanPlan(shard_tokens=0), observer=QUIET)
    with pytest.raises(UsageError, match="no clt/2/99"):
        scan(tiny_subject, tmp_path / "empty.jsonl", tmp_path / "out", plan=ScanPlan(candidates=(FeatureId("clt", 2, 99),)), observer=QUIET)


def test_a_document_longer_than_the_context_becomes_several(tiny_subject, tiny_corpus_path, tmp_path):
    words = " ".join(json.loads(line)["text"].removeprefix("<bos>").removesuffix("<eos>") for line in tiny_corpus_path.open())
    (tmp_path / "long.txt").write_text(words)
    manifest = scan(tiny_subject, tmp_path / "long.txt", tmp_path / "out", plan=ScanPlan(shard_tokens=300), observer=QUIET)
    documents = open_documents(tmp_path / "out")
    assert {len(document) for document in documents[:-1]} == {256}
    assert {document[0] for document in documents} == {tiny_subject.model.first_id}
    assert manifest.n_documents == len(documents) == -(-(len(tiny_subject.model.encode_text(words)) - 1) // 255)
    assert [shard.n_documents for shard in manifest.shards[:-1]] == [2] * (len(manifest.shards) - 1)


def test_what_cannot_be_written_is_said(tiny_subject, tiny_corpus_path, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="Statistics cannot be written: .* Give a folder"):
        scan(tiny_subject, tiny_corpus_path, tmp_path / "file", plan=SMALL, observer=QUIET)
    (tmp_path / "a.json").mkdir()
    with pytest.raises(AuditError, match="Is a directory.* Give a folder"):
        files.write_text(tmp_path / "a.json", "{}")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free some space, or give another folder"),
        (errno.EACCES, "Allow writing there"),
        (errno.EROFS, "that can be written to"),
        (errno.EIO, "'[^']*' Give another folder"),
    ],
)
def test_the_advice_fits_the_error(tmp_path, monkeypatch, number, advice):
    def fails(*_):
        raise OSError(number, os.strerror(number), str(tmp_path))

    monkeypatch.setattr(files.os, "replace", fails)
    with pytest.raises(AuditError, match=advice) as found:
        files.write_text(tmp_path / "a.json", "{}")
    assert ("Free some space" in str(found.value)) == (number == errno.ENOSPC)


def test_two_processes_do_not_write_to_one_folder(tiny_subject, tiny_corpus_path, tmp_path, whole):
    with files.claimed(tmp_path / "shards"):
        with pytest.raises(UsageError, match="The folder is in use: Another process writes to"):
            scan(tiny_subject, tiny_corpus_path, tmp_path, plan=SMALL, observer=QUIET)
        assert shard_files(tmp_path) == {}
    scan(tiny_subject, tiny_corpus_path, tmp_path, plan=SMALL, observer=QUIET)
    assert contents(tmp_path) == contents(whole)


def test_a_crash_before_the_renaming_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    old = files.ArrayFile(head="old", arrays={"a": np.arange(3), "none": np.zeros(0, np.float32)})
    files.write_arrays(path, old)
    before = path.read_bytes()

    def crash(*_):
        raise OSError("no")

    monkeypatch.setattr(files.os, "replace", crash)
    with pytest.raises(AuditError):
        files.write_arrays(path, files.ArrayFile(head="new", arrays={"a": np.arange(4)}))
    assert path.read_bytes() == before
    read = files.read_arrays(path)
    assert (read.head, read.arrays["a"].tolist(), read.arrays["none"].tolist()) == ("old", [0, 1, 2], [])


def test_the_digest_of_a_shard_depends_on_all_that_it_should(key_for):
    key = key_for((3,))
    base = shard_sha256(key, [(1, 2), (3,)])
    others = [
        shard_sha256(replace(key, **{name: "e" * 64}), [(1, 2), (3,)]) for name in ("model_sha256", "dictionary_sha256", "template_sha256")
    ]
    others += [shard_sha256(key, documents) for documents in ([(1,), (2, 3)], [(3,), (1, 2)], [(1, 2)], [(1, 2), (4,)])]
    others += [shard_sha256(key, [(1, 2), (3,)], 1)]
    assert len({base, *others}) == len(others) + 1


CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[5]))
from audit.corpus.scanning import ScanPlan, scan
from audit.events import SilentObserver
from audit.records import FeatureId
from audit.subject.loading import load_subject
model, dictionary, corpus, out = map(Path, sys.argv[1:5])
subject = load_subject(model, dictionary, corpus, observer=SilentObserver())
plan = ScanPlan(candidates=(FeatureId("clt", 0, 3), FeatureId("clt", 1, 7)), shard_tokens=120, batch_tokens=1)
scan(subject, corpus, out, plan=plan, observer=SilentObserver())
"""


def test_after_kill_9_a_pass_goes_on_and_ends_the_same(tiny_subject, tiny_model_dir, tiny_clt_dir, tiny_corpus_path, tmp_path, whole):
    arguments = [str(each) for each in (tiny_model_dir, tiny_clt_dir, tiny_corpus_path, tmp_path, torch.get_num_threads())]
    process = subprocess.Popen([sys.executable, "-c", CHILD, *arguments])
    wanted, deadline = random.Random().randint(1, 12), time.monotonic() + 120
    while len(shard_files(tmp_path)) < wanted and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    before = shard_files(tmp_path)
    assert wanted <= len(before) < len(shard_files(whole))
    assert not (tmp_path / "manifest.json").exists()
    scan(tiny_subject, tiny_corpus_path, tmp_path, plan=SMALL, observer=QUIET)
    assert before.items() <= shard_files(tmp_path).items()
    assert contents(tmp_path) == contents(whole)
    assert (tmp_path / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()


def test_statistics_are_read_without_torch(whole):
    code = "import sys; from pathlib import Path; from audit.corpus import open_statistics; open_statistics(Path(sys.argv[1])); " + (
        "from audit.corpus.showing import summary_of; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(whole)], check=True)


def test_the_combined_digest_is_what_sha256sum_prints_for_the_sorted_lines():
    import hashlib

    assert artefacts.combined(["b", "a"]) == hashlib.sha256(b"a\nb\n").hexdigest()
