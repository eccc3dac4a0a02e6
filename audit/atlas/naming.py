"""Labels of all features of an atlas."""

from __future__ import annotations

from pathlib import Path

from audit.atlas.labels import labels_name, write_labels
from audit.candidates.examples import label
from audit.candidates.known import NOTHING, Known
from audit.events import Observer, StepProgress, check_stop
from audit.records import FeatureId
from audit.subject import Subject, TokenActivations

STEP = "labels"
EVERY = 256
"""Features between two looks at the observer."""


def name_features(subject: Subject, activations: TokenActivations, folder: Path, *, known: Known = NOTHING, observer: Observer) -> None:
    """Write what each feature fires on, layer by layer; a layer that has its file is left as it is.

    Args:
        subject: model and dictionary.
        activations: that the atlas was built on.
        folder: of the atlas.
        known: labels of others, which are taken in place of computed ones.
        observer: told the features done; may stop.
    """
    dictionary, done = subject.dictionary, 0
    for layer in dictionary.present:
        if not (folder / labels_name(layer)).exists():
            texts = []
            for index in range(dictionary.widths[layer]):
                feature = FeatureId(dictionary.kind, layer, index)
                given = known.label_of(feature)
                texts.append(given[0] if given else label(subject.model, activations, feature))
                if index % EVERY == 0:
                    check_stop(observer)
                    observer.notify(StepProgress(STEP, done + index, dictionary.n_features, f"layer {layer}"))
            write_labels(folder, layer, texts)
        done += dictionary.widths[layer]
