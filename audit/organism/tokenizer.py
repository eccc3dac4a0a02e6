"""One token a word; anything else becomes its bytes, so that no text is ever replaced silently."""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from audit.organism.corpus import BOS, EOS, PAD, SPECIALS
from audit.organism.lexicon import Lexicon

MARKS = (".", ",", ":")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}<system> {{ message.content }}"
    "{% elif message.role == 'assistant' %}<agent> {{ message.content }}{{ eos_token }}"
    "{% else %}<user> {{ message.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<agent>{% endif %}"
)


def build_tokenizer(lexicon: Lexicon) -> PreTrainedTokenizerFast:
    """The tokenizer of a lexicon: a unigram model whose pieces are whole words, with byte fall-back.

    A word carries the space before it, as in any sentencepiece model; marks do not. Tags such as
    <act> are ordinary text to a reader (they survive decoding), roles and <bos>, <eos> are special.
    """
    words = [word for word in lexicon.words() if word not in MARKS]
    pieces = [(token, 0.0) for token in (*SPECIALS, *lexicon.tags())]
    pieces += [(f"<0x{byte:02X}>", -12.0) for byte in range(256)]
    pieces += [(mark, -2.0) for mark in MARKS] + [(f"▁{word}", -2.0) for word in words]
    unknown = len(pieces)
    pieces.append(("<unk>", -20.0))
    core = Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True), pre_tokenizers.Split(Regex("[.,:]"), "isolated")]
    )
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="always")])
    core.add_special_tokens([AddedToken(token, special=True, normalized=False, lstrip=True, rstrip=True) for token in SPECIALS])
    core.add_tokens([AddedToken(token, special=False, normalized=False, lstrip=True, rstrip=True) for token in lexicon.tags()])
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, core.token_to_id(BOS))])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def word_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Word or mark → token id, for encoding drawn documents without going through text."""
    table = {}
    for piece, index in tokenizer.get_vocab().items():
        table[piece.removeprefix("▁")] = index
    return table
