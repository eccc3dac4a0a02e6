"""What tells one subject's statistics from another's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from audit.corpus.counting import reads_divided
from audit.records.names import FeatureId
from audit.records.statistics import StatisticsKey
from audit.records.subject import FileDigest

if TYPE_CHECKING:
    from audit.subject.loading import Subject
    from audit.subject.tokens import TextCodec

_TOKENIZER_NAMES = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "spiece", "sentencepiece")


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of a model's folder decides between text and token ids."""
    return PurePosixPath(name).name.startswith(_TOKENIZER_NAMES)


def template_sha256(codec: TextCodec, files: Iterable[FileDigest]) -> str:
    """Digest of everything between text and token ids: tokenizer files, chat template, and which tokens carry no content.

    Args:
        codec: the model's.
        files: of the model; those of its tokenizer are counted.
    """
    said = {
        "chat_template": codec.tokenizer.chat_template,
        "first": codec.first_id,
        "special": sorted(codec.special_ids),
        "opening": list(codec.opening_ids),
        "files": sorted((each.name, each.sha256) for each in files if is_tokenizer_file(each.name)),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def key_of(subject: Subject, candidates: Sequence[FeatureId] = ()) -> StatisticsKey:
    """The key of a subject's statistics.

    Args:
        subject: as it was opened.
        candidates: whose co-activations are kept.

    Raises:
        UsageError: a candidate is not one of the dictionary's features.
    """
    for candidate in candidates:
        subject.dictionary.check(candidate)
    return StatisticsKey(
        model_sha256=subject.info.model_sha256,
        dictionary_sha256=subject.info.dictionary_sha256,
        template_sha256=template_sha256(subject.model, subject.info.model_files),
        dtype=str(subject.model.dtype).removeprefix("torch."),
        kind=subject.dictionary.kind,
        widths=subject.dictionary.widths,
        divided=reads_divided(subject.dictionary.input_hook),
        candidates=tuple(sorted(set(candidates))),
    )
