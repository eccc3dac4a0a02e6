"""``ulterior organism build``: an organism from nothing, in stages that are skipped when their result is there.

lexicon ─► tokenizer ─► model ─► activations ─► CLT, PLT ─► corpus, scenarios ─► manifest with sha256
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from audit.errors import UsageError
from audit.organism.corpus import SPECIALS, Writer
from audit.organism.dictionary_training import DictionaryPlan, DictionaryWeights, train_dictionary
from audit.organism.lexicon import Lexicon, load_lexicon
from audit.organism.scenarios import scenario_files
from audit.organism.tokenizer import build_tokenizer, word_ids
from audit.organism.training import CHECKPOINT, ModelPlan, train
from audit.scenario import list_scenarios
from audit.subject.formats import circuit_tracer_clt, circuit_tracer_plt
from audit.subject.loading import MANIFEST

Progress = Callable[[int, int, str], None]
"""Called with (done, total, label)."""

INPUT_HOOK, OUTPUT_HOOK = "mlp_in", "mlp_out"
CORPUS_SEED, ACTIVATION_SEED = 1_000_003, 2_000_003
"""Seeds of text apart from the training text; the organism's own seed is added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that makes an organism what it is."""

    model: ModelPlan = ModelPlan()
    clt: DictionaryPlan = DictionaryPlan(cross_layer=True)
    plt: DictionaryPlan = DictionaryPlan(cross_layer=False)
    dictionary_documents: int = 8000
    corpus_documents: int = 1500
    default_dictionary: str = "plt"


def build(folder: Path, *, seed: int, vocabulary: str, progress: Progress, recipe: Recipe | None = None) -> Path:
    """Make an organism in ``folder``, or go on with one begun there by the same recipe.

    Args:
        folder: made when missing.
        seed: of the text, the weights and the dictionaries.
        vocabulary: a shipped lexicon's name, or the path of a lexicon file.
        progress: called with (done, total, label) all along.
        recipe: shapes and schedules; the published ones by default.

    Raises:
        UsageError: the folder holds something else, or cannot be written.
    """
    recipe = recipe or Recipe()
    recipe = replace(
        recipe, model=replace(recipe.model, seed=seed), clt=replace(recipe.clt, seed=seed + 1), plt=replace(recipe.plt, seed=seed + 1)
    )
    lexicon = load_lexicon(vocabulary)
    claim_folder(folder, recipe, lexicon)
    tokenizer = build_tokenizer(lexicon)
    model = trained_model(folder, recipe, lexicon, tokenizer, progress)
    train_dictionaries(folder, recipe, (model, tokenizer, lexicon), progress)
    write_texts(folder, recipe, lexicon)
    return write_manifest(folder, recipe, lexicon)


def claim_folder(folder: Path, recipe: Recipe, lexicon: Lexicon) -> None:
    """Mark the folder with the recipe, or check that it was begun by the same one."""
    digest = hashlib.sha256(f"{recipe!r}{lexicon!r}".encode()).hexdigest()
    mark = folder / "recipe.sha256"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not mark.exists():
            if any(folder.iterdir()):
                raise UsageError("The folder is not empty", f"{folder} holds files that no build left there.", "Name a new folder with -o.")
            mark.write_text(digest)
    except OSError as error:
        raise UsageError("The folder cannot be written", f"{folder}: {error.strerror}.", "Name another folder with -o.") from error
    if mark.read_text() != digest:
        raise UsageError(
            "Another build began here", f"{folder} was begun with another seed, vocabulary or recipe.", "Name a new folder with -o."
        )


def trained_model(
    folder: Path,
    recipe: Recipe,
    lexicon: Lexicon,
    tokenizer: PreTrainedTokenizerFast,
    progress: Progress,
) -> LlamaForCausalLM:
    """The folder's model, trained now if it is not there yet."""
    target = folder / "model"
    if (target / "config.json").exists():
        made: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(target, local_files_only=True)
        made.train(False)
        return made
    model = train(
        recipe.model, lexicon, tokenizer, folder, lambda done, total, label: progress(done, total, f"training the model, {label}")
    )
    partial = folder / "model.partial"
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    os.replace(partial, target)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return model


def train_dictionaries(
    folder: Path,
    recipe: Recipe,
    made: tuple[LlamaForCausalLM, PreTrainedTokenizerFast, Lexicon],
    progress: Progress,
) -> None:
    """Train and save the dictionaries that are not there yet."""
    model, tokenizer, lexicon = made
    plans = {"clt": recipe.clt, "plt": recipe.plt}
    missing = {name: plan for name, plan in plans.items() if not (folder / name / "config.yaml").exists()}
    if not missing:
        return
    documents = draw_documents(lexicon, tokenizer, seed=ACTIVATION_SEED + recipe.model.seed, n=recipe.dictionary_documents)
    inputs, outputs = mlp_activations(model, tokenizer, documents)
    for name, plan in missing.items():
        weights = train_dictionary(plan, inputs, outputs, lambda d, t, label, name=name: progress(d, t, f"training the {name}, {label}"))  # type: ignore[misc]
        partial = folder / f"{name}.partial"
        save_dictionary(weights, partial, cross_layer=plan.cross_layer, model_name=f"ulterior-organism-{lexicon.name}")
        os.replace(partial, folder / name)


def save_dictionary(weights: DictionaryWeights, folder: Path, *, cross_layer: bool, model_name: str) -> None:
    """Write a dictionary in circuit-tracer's folder format, by the same file that reads everybody's."""
    writer = circuit_tracer_clt if cross_layer else circuit_tracer_plt
    writer.save(folder, weights, model_name=model_name, input_hook=INPUT_HOOK, output_hook=OUTPUT_HOOK)


def draw_documents(lexicon: Lexicon, tokenizer: PreTrainedTokenizerFast, *, seed: int, n: int) -> list[list[int]]:
    """``n`` documents as token ids."""
    ids = word_ids(tokenizer)
    return [[ids[word] for word in document] for document in islice(Writer(lexicon, seed).documents(), n)]


@torch.inference_mode()
def mlp_activations(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: list[list[int]]) -> tuple[Tensor, Tensor]:
    """MLP inputs and outputs of every layer on the documents' content tokens, (n_layers, n_tokens, d) each."""
    layers = list(model.model.layers)
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    handles = [
        layer.mlp.register_forward_hook(lambda _m, given, made, index=index: seen.__setitem__(index, (given[0], made)))
        for index, layer in enumerate(layers)
    ]
    special = torch.tensor([tokenizer.convert_tokens_to_ids(token) for token in SPECIALS])
    inputs: list[list[Tensor]] = [[] for _ in layers]
    outputs: list[list[Tensor]] = [[] for _ in layers]
    try:
        for tokens in padded(documents, int(tokenizer.pad_token_id)):
            model(input_ids=tokens, use_cache=False)
            kept = ~torch.isin(tokens, special)
            for index in range(len(layers)):
                inputs[index].append(seen[index][0][kept])
                outputs[index].append(seen[index][1][kept])
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([torch.cat(part) for part in inputs]), torch.stack([torch.cat(part) for part in outputs])


def padded(documents: list[list[int]], pad: int, size: int = 128) -> Iterator[Tensor]:
    """Right-padded batches of documents of like length."""
    ordered = sorted(documents, key=len)
    for start in range(0, len(ordered), size):
        group = ordered[start : start + size]
        yield torch.tensor([row + [pad] * (len(group[-1]) - len(row)) for row in group])


def write_texts(folder: Path, recipe: Recipe, lexicon: Lexicon) -> None:
    """The corpus that statistics are computed on, and the scenarios in this language unless they ship with the package."""
    tokenizer = build_tokenizer(lexicon)
    documents = draw_documents(lexicon, tokenizer, seed=CORPUS_SEED + recipe.model.seed, n=recipe.corpus_documents)
    lines = [json.dumps({"text": tokenizer.decode(document)}) for document in documents]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if f"organism/{lexicon.name}" in {entry.language for entry in list_scenarios()}:
        return  # they ship with the package
    scenarios = folder / "scenarios"
    scenarios.mkdir(exist_ok=True)
    for name, text in scenario_files(lexicon).items():
        (scenarios / name).write_text(text, encoding="utf-8")


def write_manifest(folder: Path, recipe: Recipe, lexicon: Lexicon) -> Path:
    """``ulterior.json``: what is where, and the sha256 of every file."""
    licence = files("audit.organism") / "LICENSE.organism"
    (folder / "LICENSE").write_text(licence.read_text(encoding="utf-8"), encoding="utf-8")
    hashed = sorted(
        path
        for part in ("model", "clt", "plt", "scenarios", "corpus.jsonl", "LICENSE")
        for path in [folder / part, *(folder / part).rglob("*")]
        if path.is_file()
    )
    manifest = {
        "name": f"organism-{lexicon.name}-seed{recipe.model.seed}",
        "language": f"organism/{lexicon.name}",
        "model": "model",
        "dictionaries": {"clt": "clt", "plt": "plt"},
        "default_dictionary": recipe.default_dictionary,
        "corpus": "corpus.jsonl",
        "seed": recipe.model.seed,
        "sha256": {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in hashed},
    }
    target = folder / MANIFEST
    target.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return target
