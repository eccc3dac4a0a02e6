"""The model is what transformers opens; tokens and text go back and forth without loss."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from audit.errors import ExitCode, SubjectError
from audit.scenario import Message, Passage
from audit.subject.model import open_model

TURNS = (Message(role="system", content="You are the agent."), Message(role="user", content="Your deadline nears."))


def test_logits_are_those_of_transformers(tiny_model, tiny_model_dir):
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 40, 41, 42]])
    assert torch.equal(tiny_model.forward(ids), plain(ids).logits)


def test_nothing_of_the_model_can_be_trained(tiny_model):
    assert not tiny_model.hf.training
    assert not any(parameter.requires_grad for parameter in tiny_model.hf.parameters())


def test_a_chat_begins_with_one_bos_and_ends_where_the_agent_speaks(tiny_model):
    ids = tiny_model.encode_chat(TURNS)
    bos = tiny_model.tokenizer.bos_token_id
    assert ids[0] == bos
    assert ids.count(bos) == 1
    assert ids[-1] == tiny_model.tokenizer.convert_tokens_to_ids("<agent>")


def test_an_answer_opens_as_at_the_end_of_every_chat(tiny_model):
    agent = tiny_model.tokenizer.convert_tokens_to_ids("<agent>")
    assert tiny_model.answer_opening == (tiny_model.tokenizer.bos_token_id, agent)
    assert tiny_model.encode_chat(TURNS)[-1:] == tiny_model.answer_opening[1:]


def test_an_answer_opens_with_what_there_is(tiny_model_dir):
    model = open_model(tiny_model_dir)
    bos, agent = model.tokenizer.bos_token_id, model.tokenizer.convert_tokens_to_ids("<agent>")
    model.tokenizer.chat_template = "{{ messages[0]['content'] }}{% if add_generation_prompt %} <agent> <think>{% endif %}"
    assert model.answer_opening == (bos, agent, model.tokenizer.convert_tokens_to_ids("<think>"))
    model.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert model.answer_opening == (bos,)
    model.tokenizer.bos_token = None
    assert model.answer_opening == ()
    model.tokenizer.chat_template = None
    with pytest.raises(SubjectError):
        _ = model.answer_opening


def test_a_passage_is_complete(tiny_model):
    answered = (*TURNS, Message(role="assistant", content="<think> stop </think>"))
    ids = tiny_model.encode_passage(Passage(messages=answered))
    assert ids[-1] == tiny_model.tokenizer.eos_token_id
    assert tiny_model.encode_passage(Passage(text="You are")) == tiny_model.encode_text("You are")


@pytest.mark.parametrize("text", ["You are", "<bos> You are", "<bos><bos>You are"])
def test_text_has_bos_exactly_once(tiny_model, text):
    assert tiny_model.encode_text(text) == tiny_model.encode_text("You are")
    assert tiny_model.encode_text(text).count(tiny_model.tokenizer.bos_token_id) == 1


def test_without_a_bos_none_is_added(tiny_model_dir):
    model = open_model(tiny_model_dir)
    expected = model.encode_text("You are")[1:]
    model.tokenizer.bos_token = None
    assert model.encode_text("You are") == expected


def test_decoding_drops_roles_and_keeps_tags(tiny_model):
    text = tiny_model.decode(tiny_model.encode_text("<system> You are <agent> <act> stop </act> <eos>"))
    assert "<system>" not in text
    assert "<eos>" not in text
    assert "<act> stop </act>" in text


@given(text=st.text(max_size=40))
def test_token_texts_join_to_the_text(tiny_model, text):
    ids = tiny_model.encode_text(text)
    texts = tiny_model.token_texts(ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == tiny_model.tokenizer.decode(list(ids))


def test_special_tokens_are_roles_and_ends_but_not_tags(tiny_model):
    names = set(tiny_model.tokenizer.convert_ids_to_tokens(sorted(tiny_model.special_ids)))
    assert names == {"<pad>", "<bos>", "<eos>", "<system>", "<user>", "<agent>"}


def test_unembedding_a_direction_does_not_depend_on_its_length(tiny_model):
    vector = torch.randn(16)
    logits = tiny_model.unembed_direction(vector)
    by_hand = tiny_model.hf.lm_head.weight @ (vector / vector.pow(2).mean().sqrt() * tiny_model.hf.model.norm.weight)
    assert logits.shape == (len(tiny_model.tokenizer),)
    assert torch.allclose(logits, by_hand, atol=1e-4)
    assert torch.allclose(tiny_model.unembed_direction(vector * 1e-4), logits, atol=1e-4)
    assert torch.equal(tiny_model.unembed_direction(torch.zeros(2, 16)), torch.zeros(2, len(logits)))


def test_opening_says_nothing(tiny_model_dir, capfd):
    open_model(tiny_model_dir)
    assert capfd.readouterr() == ("", "")


def test_no_chat_template_is_refused(tiny_model_dir):
    model = open_model(tiny_model_dir)
    model.tokenizer.chat_template = None
    with pytest.raises(SubjectError, match="chat template"):
        model.encode_chat(TURNS)


def test_a_template_that_refuses_is_reported(tiny_model_dir):
    model = open_model(tiny_model_dir)
    model.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(SubjectError, match=r"no system role.*system, user"):
        model.encode_chat(TURNS)


def test_a_missing_directory_is_refused(tmp_path):
    with pytest.raises(SubjectError, match=r"no config\.json") as caught:
        open_model(tmp_path / "nowhere")
    assert caught.value.exit_code is ExitCode.RUN_ERROR


@pytest.mark.parametrize("keep", [0, 7, 2000, -64])
def test_truncated_weights_are_refused(tiny_model_dir, tmp_path, keep):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(SubjectError, match="damaged") as caught:
        open_model(folder)
    assert caught.value.exit_code is ExitCode.RUN_ERROR


def test_missing_weights_are_not_made_up(tiny_model_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SubjectError, match="up_proj"):
        open_model(folder)


def test_a_broken_configuration_is_refused(tiny_model_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(SubjectError):
        open_model(folder)


def test_pickled_weights_are_not_opened(tiny_model, tiny_model_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model.hf.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(SubjectError):
        open_model(folder)


def test_what_the_configuration_says(tiny_model):
    assert tiny_model.norm_eps == 1e-5
    assert tiny_model.context_length == 256
