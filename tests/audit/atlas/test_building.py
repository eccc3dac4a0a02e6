"""An atlas equals a double loop over all pairs of features, whatever the tiles."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from audit.atlas import Atlas, build, building, cells, tiles
from audit.atlas.claiming import claimed
from audit.atlas.manifest import all_pairs
from audit.atlas.naming import name_features
from audit.errors import AuditError, Interrupted, SubjectError, UsageError
from audit.events import Event, SilentObserver, StepProgress
from audit.records import FeatureId
from audit.records.atlas import AtlasNeighbour
from audit.subject.norms import Norm

LISTS = ("positive_targets", "negative_targets", "positive_sources", "negative_sources")
SILENT = SilentObserver()


def smallest(made: Any, **options: int) -> int:
    """The smallest budget that is accepted."""
    firing = [np.count_nonzero(dense, axis=0) for dense in made.dense]
    facts = {"n_tokens": len(made.dense[0]), "d_model": made.subject.dictionary.d_model, **options}
    loads = [tiles.Load(sources=firing[i], targets=firing[j], **facts) for i, j in all_pairs(made.subject.dictionary.widths)]
    low, high = 1, 1 << 22
    while low < high:
        middle = (low + high) // 2
        try:
            tiles.refuse_too_small(loads, middle)
            high = middle
        except UsageError:
            low = middle + 1
    return low


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(found: tuple[AtlasNeighbour, ...], expected: list[AtlasNeighbour]) -> None:
    """The same neighbours in the same order, but for neighbours whose sizes are equal to rounding."""
    assert [each.twera for each in found] == pytest.approx([each.twera for each in expected], rel=1e-5)
    by_name = {each.feature: each for each in expected}
    for each, place in zip(found, expected, strict=True):
        wanted = by_name.get(each.feature, place)
        if wanted.feature == each.feature:
            values = (wanted.virtual_weight, wanted.era, wanted.twera)
            assert (each.virtual_weight, each.era, each.twera) == pytest.approx(values, rel=1e-5)
            assert each.n_coactive == wanted.n_coactive
        if each.feature != place.feature:  # a tie
            assert each.twera == pytest.approx(place.twera, rel=1e-6)


@settings(max_examples=100)
@given(
    kind=st.sampled_from(["clt", "plt"]),
    hook=st.sampled_from(["resid_mid", "mlp_in", "mlp_in_unweighted"]),
    shape=st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**31),
            "n_layers": st.integers(2, 4),
            "widths": st.sampled_from([(1,), (4,), (3, 5), (2, 0, 4), (0, 5, 1)]),
            "n_tokens": st.integers(1, 25),
            "density": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
            "dead": st.sampled_from([0.0, 0.4]),
        }
    ),
    top=st.sampled_from([1, 2, 32]),
    support=st.integers(1, 8),
    memory_bytes=st.sampled_from([12_000, 10**8]),
)
def test_every_feature_has_the_neighbours_of_a_double_loop(
    make: Any, strongest: Any, kind: str, hook: str, shape: dict[str, Any], top: int, support: int, memory_bytes: int
) -> None:
    made = make(kind, hook, **shape)
    if top == 32 or len(made.dense[0]) > 20:
        memory_bytes *= 10
    with tempfile.TemporaryDirectory() as room:
        build(made.subject, made.activations, Path(room), top=top, support=support, memory_bytes=memory_bytes, observer=SILENT)
        atlas = Atlas.open(Path(room))
        for feature in made.subject.dictionary.features():
            found = atlas.neighbours(feature)
            expected = strongest(made, feature, top=top, support=support)
            for name in LISTS:
                same(getattr(found, name), expected[name])
            later = [other for other in made.subject.dictionary.features() if other.layer > feature.layer]
            counts = [made.brute_force(feature, other)[3] for other in later]
            assert found.n_unsupported == sum(0 < n < support for n in counts)
            assert found.n_firing == np.count_nonzero(made.dense[feature.layer][:, feature.index])


def test_centring_of_a_layer_norm_is_in_the_virtual_weight(make: Any, tmp_path: Path) -> None:
    made = make("clt", "mlp_in", seed=3, n_layers=2, widths=(3,))
    gains = made.gains
    made.subject.model.mlp_norm = lambda layer: Norm(kind="layer", eps=1e-6, gain=gains[layer])
    build(made.subject, made.activations, tmp_path, support=1, observer=SILENT)
    source = FeatureId("clt", 0, 1)
    found = Atlas.open(tmp_path).neighbours(source)
    assert len(found.positive_targets + found.negative_targets) == 3
    for each in found.positive_targets + found.negative_targets:
        decoder = made.subject.dictionary.decoder(source)[0].double()
        encoder = made.subject.dictionary.encoder(each.feature).double() * gains[1].double()
        assert each.virtual_weight == pytest.approx(float((decoder - decoder.mean()) @ encoder), rel=1e-5)


def test_small_virtual_weights_beside_large_terms_are_exact(make: Any, strongest: Any, tmp_path: Path) -> None:
    """Where float32 products lose all digits: decoders and encoders nearly at right angles, of size 10⁴."""
    made = make("plt", "resid_mid", seed=1, n_layers=2, widths=(6,), n_tokens=12)
    W_dec, W_enc = made.subject.dictionary.at(0).W_dec.tensor, made.subject.dictionary.at(1).W_enc.tensor
    W_dec[:, 0, 0], W_dec[:, 0, 1] = 1e4, 1e4
    W_enc[:, 0], W_enc[:, 1] = 1e4, -1e4
    build(made.subject, made.activations, tmp_path, top=2, support=1, observer=SILENT)
    for feature in made.subject.dictionary.features():
        found, expected = Atlas.open(tmp_path).neighbours(feature), strongest(made, feature, top=2, support=1)
        for name in LISTS:
            same(getattr(found, name), expected[name])


def test_equal_sizes_are_ordered_by_layer_and_index(make: Any, tmp_path: Path) -> None:
    made = make("plt", "resid_mid", seed=1, n_layers=4, widths=(7,), n_tokens=9, density=1.0)
    for layer in range(4):
        made.subject.dictionary.at(layer).W_enc.tensor[:] = 1.0
        made.subject.dictionary.at(layer).W_dec.tensor[:] = 1.0
    same_values = sparse.csr_matrix(np.ones((9, 7), dtype=np.float32))
    activations = replace(made.activations, layers=(same_values,) * 4)
    build(made.subject, activations, tmp_path, top=10, support=1, observer=SILENT)
    atlas = Atlas.open(tmp_path)
    names = [str(each.feature) for each in atlas.neighbours(FeatureId("plt", 1, 3)).positive_targets]
    assert names == [f"plt/2/{index}" for index in range(7)] + [f"plt/3/{index}" for index in range(3)]
    names = [str(each.feature) for each in atlas.neighbours(FeatureId("plt", 3, 3)).positive_sources]
    assert names == [f"plt/0/{index}" for index in range(7)] + [f"plt/1/{index}" for index in range(3)]


@pytest.mark.parametrize("kind", ["clt", "plt"])
def test_tiles_change_no_byte(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    made = make(kind, "mlp_in", seed=2, n_layers=4, widths=(12, 20), n_tokens=120, density=0.3, dead=0.1, dtype=torch.bfloat16)
    n_tiles, meet = [0], cells.meet

    def counted(*given: Any) -> Any:
        n_tiles[-1] += 1
        return meet(*given)

    monkeypatch.setattr(cells, "meet", counted)
    least = smallest(made, top=4, support=6)
    n_tiles.clear()
    for name, memory_bytes in (("least", least), ("some", 2 * least), ("much", 10**8)):
        n_tiles.append(0)
        build(made.subject, made.activations, tmp_path / name, top=4, support=6, memory_bytes=memory_bytes, observer=SILENT)
    assert n_tiles[0] > n_tiles[1] > n_tiles[2] == 6
    assert files(tmp_path / "least") == files(tmp_path / "some") == files(tmp_path / "much")
    with pytest.raises(UsageError, match="too small"):
        build(made.subject, made.activations, tmp_path / "none", top=4, support=6, memory_bytes=least - 1, observer=SILENT)
    assert not (tmp_path / "none").exists()


class Stopping(SilentObserver):
    """Stops when a pair of layers is begun, and remembers what it is told."""

    def __init__(self, after: int) -> None:
        self.after, self.told = after, list[StepProgress]()

    def notify(self, event: Event) -> None:
        assert isinstance(event, StepProgress)
        self.told.append(event)

    def should_stop(self) -> bool:
        return len(self.told) > self.after


def test_a_build_that_was_stopped_goes_on_with_the_pair_that_was_not_done(make: Any, tmp_path: Path) -> None:
    made = make("clt", "mlp_in", seed=2, n_layers=4, widths=(12,), n_tokens=60)
    build(made.subject, made.activations, tmp_path / "whole", support=4, observer=SILENT)
    for after in range(6):
        stopping = Stopping(1)
        with pytest.raises(Interrupted):
            build(made.subject, made.activations, tmp_path / "parts", support=4, observer=stopping)
        assert Atlas.open(tmp_path / "parts").totals().n_pairs_done == min(after + 1, 5)
        if after == 4:
            break
    watching = Stopping(10**6)
    totals = build(made.subject, made.activations, tmp_path / "parts", support=4, observer=watching)
    assert (totals.n_pairs_done, totals.n_pairs) == (6, 6)
    assert [each.done for each in watching.told] == [833, 1000]
    assert all(each.step == "atlas" and each.total == 1000 for each in watching.told)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


@pytest.mark.parametrize("written", range(17))
def test_a_crash_between_two_files_doubles_nothing(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    """A crash after so many files of 17: the manifest, six empty tables, the manifest, and both tables and the manifest of three pairs."""
    made = make("clt", "resid_mid", seed=5, n_layers=3, widths=(9,), n_tokens=60)
    whole, parts, left = tmp_path / "whole", tmp_path / "parts", [written]
    build(made.subject, made.activations, whole, top=3, support=4, observer=SILENT)
    replace_file = Path.replace

    def crashing(self: Path, target: Path) -> Path:
        if not left[0]:
            raise MemoryError
        left[0] -= 1
        return replace_file(self, target)

    monkeypatch.setattr(Path, "replace", crashing)
    with pytest.raises(MemoryError):
        build(made.subject, made.activations, parts, top=3, support=4, observer=SILENT)
    monkeypatch.setattr(Path, "replace", replace_file)
    build(made.subject, made.activations, parts, top=3, support=4, observer=SILENT)
    assert files(parts) == files(whole)


def test_a_finished_atlas_is_not_computed_again(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("clt", "resid_mid", seed=5)
    build(made.subject, made.activations, tmp_path, support=2, observer=SILENT)
    monkeypatch.setattr(building, "_one_layer", None)
    assert build(made.subject, made.activations, tmp_path, support=2, observer=SILENT).n_pairs_done == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda made, given: given.update(top=5), "top is 32, now 5"),
        (lambda made, given: given.update(support=3), "support is 2, now 3"),
        (lambda made, given: given.update(corpus_sha256="4" * 64), "corpus_sha256 is 333333333333…, now 444444444444…"),
        (lambda made, given: setattr(made.subject.info, "dictionary_sha256", "5" * 64), "dictionary_sha256"),
        (lambda made, given: setattr(made.subject.info, "model_sha256", "5" * 64), "model_sha256"),
        (lambda made, given: made.activations.layers[1].data.__setitem__(0, 0.0), "activations_sha256"),
    ],
)
def test_an_atlas_of_something_else_is_refused(make: Any, tmp_path: Path, change: Callable[..., object], named: str) -> None:
    made = make("clt", "resid_mid", seed=5)
    build(made.subject, made.activations, tmp_path, support=2, observer=SILENT)
    before = files(tmp_path)
    given: dict[str, Any] = {"support": 2}
    change(made, given)
    with pytest.raises(UsageError, match="another atlas") as refused:
        build(made.subject, made.activations, tmp_path, observer=SILENT, **given)
    assert named in refused.value.why
    assert files(tmp_path) == before


def test_what_cannot_be_used_is_refused(make: Any, tmp_path: Path) -> None:
    made = make("clt", "resid_mid", seed=5)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        build(made.subject, made.activations, tmp_path / "file", observer=SILENT)
    with pytest.raises(AuditError, match="cannot be written"):
        build(made.subject, made.activations, tmp_path / "file" / "below", observer=SILENT)
    made.subject.dictionary = replace(made.subject.dictionary, input_hook="attn_out")
    with pytest.raises(SubjectError, match="No virtual weights"):
        build(made.subject, made.activations, tmp_path / "none", observer=SILENT)
    assert not (tmp_path / "none").exists()


def test_two_builds_do_not_write_to_one_folder(make: Any, tmp_path: Path) -> None:
    made = make("clt", "resid_mid", seed=5)
    with claimed(tmp_path):
        with pytest.raises(UsageError, match="The folder is in use: Another process builds the atlas in") as refused:
            build(made.subject, made.activations, tmp_path, support=2, observer=SILENT)
        assert str(tmp_path) in refused.value.why
        with pytest.raises(UsageError, match="in use"):
            name_features(made.subject, made.activations, tmp_path, observer=SILENT)
        assert files(tmp_path) == {".lock": b""}
    assert build(made.subject, made.activations, tmp_path, support=2, observer=SILENT).n_pairs_done == 3


def test_stored_zeros_do_not_fire(make: Any, tmp_path: Path) -> None:
    made = make("clt", "resid_mid", seed=5, n_tokens=30, density=0.4)
    layers = []
    for dense in made.dense:
        rows, columns = np.indices(dense.shape)
        layers.append(sparse.csr_matrix((dense.ravel(), (rows.ravel(), columns.ravel())), shape=dense.shape))
    assert layers[0].nnz == made.dense[0].size
    build(made.subject, made.activations, tmp_path / "without", support=3, observer=SILENT)
    build(made.subject, replace(made.activations, layers=tuple(layers)), tmp_path / "with", support=3, observer=SILENT)
    assert files(tmp_path / "with") == files(tmp_path / "without")
