"""An atlas is read without the libraries that built it, and what is wrong with its files is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from audit.atlas import build
from audit.atlas.reading import Atlas
from audit.errors import AuditError, UsageError
from audit.events import SilentObserver
from audit.records import FeatureId

FEATURE = FeatureId("clt", 1, 2)


@pytest.fixture
def folder(make: Any, tmp_path: Path) -> Path:
    """An atlas of three layers of 5 and 4 features; the second has both targets and sources."""
    made = make("clt", "mlp_in", seed=8, n_layers=3, widths=(5, 4), n_tokens=40)
    build(made.subject, made.activations, tmp_path / "atlas", top=3, support=2, observer=SilentObserver())
    return tmp_path / "atlas"


def test_tables_are_safetensors_with_one_row_a_feature(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "manifest.json",
        *(f"{side}-{layer}.safetensors" for side in ("source", "target") for layer in range(3)),
    }
    found = Atlas.open(folder).neighbours(FEATURE)
    down, up = load_file(folder / "source-1.safetensors"), load_file(folder / "target-1.safetensors")
    assert down["twera"].shape == (4, 6)
    assert found.n_firing == down["n_firing"][2]
    assert found.n_unsupported == down["n_unsupported"][2]
    assert (found.target_layers, found.source_layers) == ((2,), (0,))
    halves = ((found.positive_targets, down, 0), (found.negative_targets, down, 3), (found.positive_sources, up, 0))
    for neighbours, table, start in (*halves, (found.negative_sources, up, 3)):
        places = range(start, start + len(neighbours))
        for place, each in zip(places, neighbours, strict=True):
            row = {name: values[2, place] for name, values in table.items() if values.ndim == 2}
            assert (each.feature.layer, each.feature.index, each.n_coactive) == (row["layer"], row["index"], row["n_coactive"])
            assert (each.virtual_weight, each.era, each.twera) == (row["virtual_weight"], row["era"], row["twera"])
        assert np.all(table["layer"][2, start + len(neighbours) : start + 3] == -1)
    assert found.positive_targets
    assert found.positive_sources


def test_reading_loads_neither_torch_nor_scipy_nor_numpy(folder: Path) -> None:
    script = """
import sys
from pathlib import Path
from audit.atlas.reading import Atlas
from audit.records.names import FeatureId
found = Atlas.open(Path(sys.argv[1])).neighbours(FeatureId("clt", 1, 2))
print(len(found.positive_targets), *(name for name in ("torch", "scipy", "numpy") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(Atlas.open(folder).neighbours(FEATURE).positive_targets))]


def test_only_the_rows_asked_for_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atlas, pread, n_bytes = Atlas.open(folder), os.pread, []

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        n_bytes.append(length)
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    atlas.neighbours(FEATURE)
    header = len((folder / "source-1.safetensors").read_bytes()) - 4 * (2 * 8 + 6 * 22)
    assert sum(n_bytes) == 2 * (header + 2 * 8 + 6 * 22)


@pytest.mark.parametrize("name", ["clt/3/0", "clt/1/4", "plt/1/0", "clt/9/0"])
def test_an_unknown_feature_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match="No such feature") as refused:
        Atlas.open(folder).neighbours(FeatureId.parse(name))
    assert refused.value.instead == "It has features from clt/0/0 to clt/2/4."


def test_a_folder_without_an_atlas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no directory"):
        Atlas.open(tmp_path / "none")
    with pytest.raises(UsageError, match="cannot be read"):
        Atlas.open(tmp_path)


def test_every_cut_of_a_table_is_refused(folder: Path) -> None:
    path = folder / "source-1.safetensors"
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 37), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match="damaged") as refused:
            Atlas.open(folder).neighbours(FEATURE)
        assert str(path) in refused.value.why
    path.write_bytes(whole + b"\0")
    with pytest.raises(UsageError, match="damaged"):
        Atlas.open(folder).neighbours(FEATURE)
    path.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        Atlas.open(folder).neighbours(FEATURE)


def test_a_changed_header_is_refused(folder: Path) -> None:
    path = folder / "target-1.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    text = whole[8 : 8 + length]
    for old, new in (
        (b'"F32"', b'"F16"'),
        (b"[4,6]", b"[6,4]"),
        (b'"n_firing"', b'"n_fixing"'),
        (b'"merged"', b'"murged"'),
        (b'"[0]"', b'"[a]"'),
        (b'"[0]"', b'"{0}"'),
        (b'"key":"', b'"key":7'),
        (text[:1], b"["),
        (text[:2], b'"'),
        (b'"key":"' + text.split(b'"key":"')[1][:64], b'"key":"' + b"0" * 64),
    ):
        assert old in text
        path.write_bytes(whole[:8] + text.replace(old, new, 1)[:length].ljust(length) + whole[8 + length :])
        with pytest.raises(AuditError, match="damaged"):
            Atlas.open(folder).neighbours(FEATURE)
    for first in (0, 1 << 40, length + 8):
        path.write_bytes(first.to_bytes(8, "little") + whole[8:])
        with pytest.raises(AuditError, match="damaged"):
            Atlas.open(folder).neighbours(FEATURE)


def test_a_changed_manifest_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    whole = json.loads(path.read_bytes())
    key = whole["key"]
    for changed in (
        {},
        {**whole, "format": "other"},
        {**whole, "version": 2},
        {**whole, "key": {**key, "widths": [5, -4]}},
        {**whole, "key": {**key, "top": "3"}},
        {**whole, "key": {**key, "top": True}},
        {**whole, "key": {**key, "kind": None}},
        {**whole, "key": {name: value for name, value in key.items() if name != "support"}},
        {**whole, "key": {**key, "more": 1}},
        {**whole, "key": [1]},
        {**whole, "active": None},
        {**whole, "done": [[1]]},
        {**whole, "done": [["a", 2]]},
        {**whole, "done": [[0, 1], [0, 1], [0, 2]]},
        {**whole, "done": [[0, 1], [0, 2], [2, 1]]},
        {**whole, "active": [1, 2]},
        [],
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(UsageError):
            Atlas.open(folder)
    for text in (b"", b"{", b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(text)
        with pytest.raises(UsageError, match="holds no atlas: it has a manifest.json which is not JSON") as refused:
            Atlas.open(folder)
        assert "elete" not in str(refused.value)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"format_version": 1, "statistics_sha256": "0" * 64}, "of corpus statistics"),
        ({"format": "a\x1b[2Jb" + "c" * 1000}, "of the format a\u241b[2Jbccc"),
        ({}, "that names no format"),
        ([], "that is no JSON object"),
    ],
)
def test_a_folder_of_something_else_is_left_as_it_is(make: Any, tmp_path: Path, other: object, what: str) -> None:
    made = make("clt", "mlp_in", seed=8, n_layers=2, widths=(3,))
    (tmp_path / "manifest.json").write_text(json.dumps(other))
    for call in (Atlas.open, lambda folder: build(made.subject, made.activations, folder, observer=SilentObserver())):
        with pytest.raises(UsageError, match="No atlas") as refused:
            call(tmp_path)
        assert what in refused.value.why
        assert "elete" not in refused.value.instead
        assert len(refused.value.why) < 500
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_what_comes_from_the_manifest_moves_no_cursor(folder: Path) -> None:
    path = folder / "manifest.json"
    whole = json.loads(path.read_bytes())
    path.write_text(json.dumps({**whole, "key": {**whole["key"], "kind": "\x1b[2J"}}))
    with pytest.raises(UsageError, match="No such feature") as refused:
        Atlas.open(folder).neighbours(FEATURE)
    assert "\x1b" not in str(refused.value)


def test_an_unfinished_atlas_says_so_and_has_no_rows_of_a_missing_table(folder: Path) -> None:
    path = folder / "manifest.json"
    whole = json.loads(path.read_bytes())
    path.write_text(json.dumps({**whole, "done": []}))
    before = Atlas.open(folder).neighbours(FEATURE)
    assert (before.n_pairs_done, before.n_pairs) == (0, 3)
    (folder / "source-1.safetensors").unlink()
    found = Atlas.open(folder).neighbours(FEATURE)
    assert (found.positive_targets, found.negative_targets, found.target_layers) == ((), (), ())
    assert (found.positive_sources, found.n_firing) == (before.positive_sources, before.n_firing)
    (folder / "target-1.safetensors").unlink()
    found = Atlas.open(folder).neighbours(FEATURE)
    assert (found.positive_sources, found.source_layers, found.n_firing) == ((), (), None)


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("layer", 0, "a neighbour of layer 0"),
        ("layer", 1, "a neighbour of layer 1"),
        ("layer", 3, "a neighbour of layer 3"),
        ("layer", -2, "a neighbour of layer -2"),
        ("index", 5, "the neighbour 5 of layer 2, which has 5"),
        ("index", -1, "the neighbour -1 of layer 2"),
        ("twera", np.nan, "make no sense"),
        ("era", np.inf, "make no sense"),
        ("virtual_weight", -np.inf, "make no sense"),
        ("n_coactive", -1, "make no sense"),
        ("n_firing", -1, "fires on -1 of 40 tokens"),
        ("n_firing", 41, "fires on 41 of 40 tokens"),
        ("n_unsupported", -1, "by its numbers"),
    ],
)
def test_a_value_that_cannot_be_is_refused(folder: Path, column: str, value: float, why: str) -> None:
    path = folder / "source-1.safetensors"
    raw = bytearray(path.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    assert Atlas.open(folder).neighbours(FEATURE).positive_targets
    start = 8 + length + json.loads(raw[8 : 8 + length])[column]["data_offsets"][0]
    changed = load_file(path)[column].copy()
    changed[(2, 0) if changed.ndim == 2 else 2] = value
    raw[start : start + changed.nbytes] = changed.tobytes()
    path.write_bytes(raw)
    with pytest.raises(UsageError, match="damaged") as refused:
        Atlas.open(folder).neighbours(FEATURE)
    assert why in refused.value.why


def test_a_finished_atlas_has_all_layers_in_every_table(folder: Path) -> None:
    for name, old, new in (("source-1", b"[2]", b"[] "), ("source-1", b"[2]", b"[0]"), ("target-2", b"[0, 1]", b"[0]   ")):
        path = folder / f"{name}.safetensors"
        whole = path.read_bytes()
        place = whole.index(b'"merged":"') + len(b'"merged":"')
        assert whole[place : place + len(old)] == old
        path.write_bytes(whole[:place] + new + whole[place + len(old) :])
        with pytest.raises(UsageError, match="are merged into it, expected"):
            Atlas.open(folder).neighbours(FeatureId("clt", int(name[-1]), 0))
        path.write_bytes(whole)
