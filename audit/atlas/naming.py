"""Labels of all features of an atlas."""

from __future__ import annotations

from pathlib import Path

from audit.atlas.claiming import claimed, unwritable
from audit.atlas.labels import labels_name, write_labels
from audit.candidates.examples import label
from audit.candidates.known import NOTHING, Known
from audit.events import Observer, StepProgress, check_stop
from audit.records import FeatureId
from audit.subject import Subject, TokenActivations

STEP = "labels"
EVERY = 256
"""Features between two looks at the observer."""


def name_features(subject: Subject, activations: TokenActivations, folder: Path, *, known: Known = NOTHING, observer: Observer) -> int:
    """Write what each feature fires on, layer by layer; a layer that has its file is left as it is.

    Args:
        subject: model and dictionary.
        activations: that the atlas was built on.
        folder: of the atlas.
        known: labels of others, which are taken in place of computed ones.
        observer: told the features done; may stop.

    Returns:
        Layers that had no labels before.

    Raises:
        UsageError: another process builds in the folder.
        AuditError: the folder cannot be written.
        Interrupted: the observer asked to stop; layers that are done are kept.
    """
    try:
        with claimed(folder):
            left = [layer for layer in subject.dictionary.present if not (folder / labels_name(layer)).exists()]
            for layer in left:
                write_labels(folder, layer, _texts(subject, activations, layer, known, observer))
            return len(left)
    except OSError as error:
        raise unwritable(folder, error) from error


def _texts(subject: Subject, activations: TokenActivations, layer: int, known: Known, observer: Observer) -> list[str]:
    """Labels of a layer's features."""
    dictionary, texts = subject.dictionary, []
    before = sum(dictionary.widths[:layer])
    for index in range(dictionary.widths[layer]):
        if index % EVERY == 0:
            check_stop(observer)
            observer.notify(StepProgress(STEP, before + index, dictionary.n_features, f"layer {layer}"))
        feature = FeatureId(dictionary.kind, layer, index)
        given = known.label_of(feature)
        texts.append(given[0] if given else label(subject.model, activations, feature))
    return texts
