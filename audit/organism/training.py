"""Training of the organism's model: a small Llama, from scratch, seeded, resumable.

The training sees documents only. It knows of no feature, no dictionary and no audit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.hooks import RemovableHandle
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from audit.organism.corpus import Mixture, Writer
from audit.organism.lexicon import Lexicon
from audit.organism.tokenizer import word_ids

CHECKPOINT = "training.pt"
CHECKPOINT_EVERY = 200
"""Steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """Shape and schedule of one training run."""

    seed: int = 0
    n_layers: int = 5
    d_model: int = 128
    n_heads: int = 4
    d_mlp: int = 384
    steps: int = 2400
    warm_up: int = 60
    batch: int = 96
    learning_rate_matrices: float = 0.02
    learning_rate_rest: float = 3e-3
    weight_decay: float = 0.2
    noise: float = 0.15
    """Gaussian noise after each block, in multiples of the residual's root mean square: downstream layers must read
    directions robustly."""


Progress = Callable[[int, int, str], None]
"""Called with (done, total, label)."""


def new_model(plan: ModelPlan, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model of that shape."""
    torch.manual_seed(plan.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=plan.d_model,
        intermediate_size=plan.d_mlp,
        num_hidden_layers=plan.n_layers,
        num_attention_heads=plan.n_heads,
        num_key_value_heads=plan.n_heads,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attention_bias=False,
        mlp_bias=False,
        rms_norm_eps=1e-5,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=48,
    )
    return model


def batches(
    lexicon: Lexicon, tokenizer: PreTrainedTokenizerFast, *, seed: int, size: int, mixture: Mixture | None = None
) -> Iterator[Tensor]:
    """Endless right-padded batches of token ids, documents of like length together, (batch, length)."""
    writer = Writer(lexicon, seed, mixture)
    ids = word_ids(tokenizer)
    pad = int(tokenizer.pad_token_id)
    stream = writer.documents()
    while True:
        drawn = sorted(([ids[word] for word in document] for document in islice(stream, 8 * size)), key=len)
        groups = [drawn[i : i + size] for i in range(0, len(drawn), size)]
        writer.draw.shuffle(groups)
        for group in groups:
            width = len(group[-1])
            yield torch.tensor([row + [pad] * (width - len(row)) for row in group])


def train(
    plan: ModelPlan,
    lexicon: Lexicon,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    progress: Progress,
    mixture: Mixture | None = None,
) -> LlamaForCausalLM:
    """Train, or go on from the folder's checkpoint, and return the model in evaluation mode."""
    model = new_model(plan, tokenizer)
    optimizers = build_optimizers(model, plan)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    start = resume(folder / CHECKPOINT, plan, model, optimizers)
    generator = torch.Generator()
    noise = add_noise(model, plan.noise, generator)
    stream = islice(batches(lexicon, tokenizer, seed=plan.seed, size=plan.batch, mixture=mixture), start, None)
    model.train()
    mean = 0.0
    for step, tokens in zip(range(start, plan.steps), stream, strict=False):
        for optimizer, base in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * schedule(step, plan)
        generator.manual_seed((plan.seed << 32) + step)  # a resumed run draws the same noise
        loss = language_loss(model, tokens, int(tokenizer.pad_token_id))
        torch.autograd.backward(loss)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        mean = loss.item() if step == start else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % 10 == 0:
            progress(step + 1, plan.steps, f"loss {mean:.3f}")
        if (step + 1) % CHECKPOINT_EVERY == 0 and step + 1 < plan.steps:
            save_checkpoint(folder / CHECKPOINT, plan, step + 1, model, optimizers)
    for handle in noise:
        handle.remove()
    model.train(False)
    return model


def language_loss(model: LlamaForCausalLM, tokens: Tensor, pad: int) -> Tensor:
    """Mean next-token loss in nats, padding left out; matrix products in bf16, the loss in fp32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    targets = tokens[:, 1:]
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=pad)


def schedule(step: int, plan: ModelPlan) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < plan.warm_up:
        return (step + 1) / plan.warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - plan.warm_up) / max(1, plan.steps - plan.warm_up)))


def build_optimizers(model: LlamaForCausalLM, plan: ModelPlan) -> list[torch.optim.Optimizer]:
    """Muon on the blocks' matrices, AdamW on embeddings, unembedding and gains."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(matrices, lr=plan.learning_rate_matrices, momentum=0.95, weight_decay=plan.weight_decay),
        torch.optim.AdamW(rest, lr=plan.learning_rate_rest, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def add_noise(model: LlamaForCausalLM, scale: float, generator: torch.Generator) -> list[RemovableHandle]:
    """Noise in proportion to the residual's size after every block."""

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        size = output.detach().float().pow(2).mean(-1, keepdim=True).sqrt()
        return output + (scale * size * torch.randn(output.shape, generator=generator)).to(output.dtype)

    return [layer.register_forward_hook(hook) for layer in model.model.layers] if scale else []


def save_checkpoint(path: Path, plan: ModelPlan, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Write a checkpoint beside the old one and put it in its place in one move."""
    state = {"plan": asdict(plan), "step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def resume(path: Path, plan: ModelPlan, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    """Load a checkpoint of the same plan; the step to go on from."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["plan"] != asdict(plan):
        return 0
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])
