"""Published weights of models with several parts: folders that transformers writes itself, with random weights, a tokenizer and an image
processor. What weights lack is left out, also of a saved run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing
from torch import Tensor

import models
from eval.base.capabilities import Answers, Captions, EncodesImages, EncodesText, ScoresPairs, Unmasks
from models.llava.model import SYSTEM
from models.published import published
from models.shared.chat import Turn
from models.shared.images import OPENAI_MEAN, OPENAI_STD, normalise
from models.shared.prefix import SOFT
from models.shared.text import HubTokenizer
from tests.models.kit import assert_close, randomise
from tests.stand_ins import bert, llama, opt

PICTURES = [np.random.default_rng(seed).integers(256, size=(32, 32, 3), dtype=np.uint8) for seed in range(2)]
TEXTS = ["a red circle", "two blue squares beside a star"]
TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BERT, OPT = bert(TEXTS), opt([*TEXTS, "Question: what is it? Answer:\n"])
ROLES = [(token, BERT.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
BERT.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair=None, special_tokens=ROLES)


@pytest.fixture(autouse=True)
def same_weights() -> Iterator[None]:
    """Random weights write texts in which two tokens can be nearly as likely: rounding would decide. They are the same in each run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(2)
    yield
    torch.set_num_threads(before)


def pixels() -> Tensor:
    return normalise(torch.from_numpy(np.stack(PICTURES)).permute(0, 3, 1, 2), OPENAI_MEAN, OPENAI_STD)


def saved(model: Any, tokenizer: Any, folder: Path) -> str:
    randomise(model, 0)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.BlipImageProcessor(size=size, image_mean=OPENAI_MEAN, image_std=OPENAI_STD).save_pretrained(folder)
    return f"hf:{folder}"


# ----------------------------------------------------------------------------------------------------------- FLAVA


def flava_config() -> transformers.FlavaConfig:
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.FlavaConfig(
        text_config={"vocab_size": len(BERT), "max_position_embeddings": 24, **TOWER, **none},
        image_config={"image_size": 32, "patch_size": 16, "vocab_size": 64, "mask_token": True, **TOWER, **none},
        multimodal_config={**TOWER, **none},
        projection_dim=24,
        hidden_size=32,
        init_codebook=False,
    )


def test_flava(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = transformers.FlavaForPreTraining(flava_config())
    ours: Any = published(saved(theirs, BERT, tmp_path / "hub"))
    assert "no codebook of our FLAVA: without unmask" in capsys.readouterr().err
    tokens = BERT(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = theirs(**tokens, pixel_values=pixels(), return_loss=False, skip_unmasked_multimodal_encoder=False)
        fused = theirs.flava(**tokens, pixel_values=pixels()).multimodal_embeddings
    image, text = out.image_embeddings[:, 0], out.text_embeddings[:, 0]
    assert_close(ours.encode_image(PICTURES), _unit(theirs.flava.image_projection(image)), "image features")
    assert_close(ours.encode_text(TEXTS), _unit(theirs.flava.text_projection(text)), "text features")
    matched = theirs.itm_head(fused)
    assert_close(ours.score(PICTURES, TEXTS), matched[:, 1] - matched[:, 0], "matching")
    for model in (ours, _saved_and_loaded(ours, tmp_path / "run")):
        for capability in (ScoresPairs, EncodesImages, EncodesText):
            assert isinstance(model, capability)
        assert not isinstance(model, Unmasks)


def test_flavas_encoders_without_heads(tmp_path: Path) -> None:
    ours: Any = published(saved(transformers.FlavaModel(flava_config()), BERT, tmp_path))
    assert isinstance(ours, EncodesImages)
    assert not isinstance(ours, ScoresPairs)


# ---------------------------------------------------------------------------------------------------------- BLIP-2


def blip2_config(text: dict[str, Any], words: int) -> transformers.Blip2Config:
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.Blip2Config(
        vision_config={**TOWER, "image_size": 32, "patch_size": 16},
        qformer_config={**TOWER, **none, "vocab_size": words, "max_position_embeddings": 24, "encoder_hidden_size": 32},
        text_config=text,
        num_query_tokens=3,
        image_text_hidden_size=16,
        image_token_index=None,
    )


LANGUAGE = {
    "model_type": "opt",
    "vocab_size": len(OPT) + 6,  # rounded up, as the released ones
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "eos_token_id": OPT.encode("\n", add_special_tokens=False)[0],  # as the released ones
    "bos_token_id": OPT.bos_token_id,
    "pad_token_id": OPT.pad_token_id,
}
T5 = {
    "model_type": "t5",
    "vocab_size": len(BERT),
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": BERT.sep_token_id,
    "bos_token_id": BERT.sep_token_id,
}


def test_blip2_that_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = transformers.Blip2ForConditionalGeneration(blip2_config(LANGUAGE, 50))
    ours: Any = published(saved(theirs, OPT, tmp_path / "hub"))
    assert "without score, encode_image, encode_text" in capsys.readouterr().err
    asked = OPT("Question: what is it? Answer:", add_special_tokens=False).input_ids
    for model in (ours, _saved_and_loaded(ours, tmp_path / "run")):
        assert isinstance(model, Captions)
        assert isinstance(model, Answers)
        assert not isinstance(model, ScoresPairs | EncodesImages | EncodesText)
        assert model.tokenizer.end == LANGUAGE["eos_token_id"]
        assert model.tokenizer.start == OPT.bos_token_id
        rows = [[-1] * 3 + [OPT.bos_token_id], [-1] * 3 + [OPT.bos_token_id, *asked]]
        for row, found in zip(rows, (model.caption(PICTURES[:1]), model.answer(PICTURES[:1], ["what is it?"])), strict=True):
            assert found == [_written(theirs, row)]
    ids, labels = ours.sequences.laid_out([asked], ["a star"])
    assert labels[0, -1] == LANGUAGE["eos_token_id"]
    ends = int(ids.shape[1])
    logits = _logits(theirs, ids[0].tolist())
    expected = sum(logits[place - 1].log_softmax(-1)[labels[0, place]] for place in range(ends) if labels[0, place] >= 0)
    found = ours.answer_likelihood(PICTURES[:1], ["what is it?"], ["a star"])
    assert float(found[0]) == pytest.approx(float(expected), abs=1e-3)


def test_blip2_with_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    theirs: Any = transformers.Blip2ForConditionalGeneration(blip2_config(T5, 50))
    ours: Any = published(saved(theirs, BERT, tmp_path / "hub"))
    end = BERT.sep_token_id
    asked = [*BERT("Question: what is it? Answer:", add_special_tokens=False).input_ids, end]
    for rest, found in (([end], ours.caption(PICTURES[:1])), (asked, ours.answer(PICTURES[:1], ["what is it?"]))):
        embedded = _embedded(theirs, [-1] * 3 + rest)
        with torch.no_grad():
            ids = theirs.language_model.generate(
                inputs_embeds=embedded, attention_mask=torch.ones(embedded.shape[:2]), do_sample=False, max_new_tokens=32,
                suppress_tokens=[token for token in BERT.all_special_ids if token != end],
            )  # fmt: skip
        assert found == [BERT.decode(ids[0], skip_special_tokens=True).strip()]


def test_blip2_that_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = blip2_config(LANGUAGE, len(BERT))
    config.qformer_config.use_qformer_text_input = True
    theirs = transformers.Blip2ForImageTextRetrieval(config)
    ours: Any = published(saved(theirs, BERT, tmp_path / "hub"))
    assert "without caption, answer, answer_likelihood" in capsys.readouterr().err
    tokens = BERT(TEXTS, padding=True, return_tensors="pt")
    asked = {"pixel_values": pixels(), "input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    with torch.no_grad():
        matched = theirs(**asked, use_image_text_matching_head=True).logits_per_image
        contrast = theirs(**asked, use_image_text_matching_head=False)
    for model in (ours, _saved_and_loaded(ours, tmp_path / "run")):
        assert not isinstance(model, Captions | Answers)
        assert_close(model.score(PICTURES, TEXTS), matched[:, 1] - matched[:, 0], "matching")
        similarity = torch.einsum("nqd,td->ntq", model.encode_image(PICTURES), model.encode_text(TEXTS)).amax(dim=-1)
        assert_close(similarity, contrast.logits_per_image, "similarity")


# ----------------------------------------------------------------------------------------------------------- LLaVA


@pytest.mark.parametrize("layer", [-2, -1])
def test_llava(tmp_path: Path, layer: int) -> None:
    asked = "Write a caption for this picture briefly. What is it? Describe"
    words = llama([*TEXTS, f"{SYSTEM}USER: \n{asked} ASSISTANT: a star"])
    words.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    text = {"model_type": "llama", "vocab_size": len(words) + 3, "tie_word_embeddings": False, "max_position_embeddings": 256}
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **TOWER, "image_size": 32, "patch_size": 16},
        text_config={**text, **TOWER, "num_key_value_heads": 4},
        image_token_id=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=layer,
    )
    theirs = transformers.LlavaForConditionalGeneration(config)
    ours: Any = published(saved(theirs, words, tmp_path / "hub"))
    for model in (ours, _saved_and_loaded(ours, tmp_path / "run")):
        assert isinstance(model, Captions)
        assert isinstance(model, Answers)
        assert model.tokenizer.end == words.eos_token_id
        [row] = [model.template.conversation([Turn("What is it?", "a star")])]
        ids = torch.tensor([[config.image_token_id if token == SOFT else token for token in row.ids]])
        assert words.decode(ids[0]) == f"<s> {SYSTEM}USER: {'<image>' * 4}\nWhat is it? ASSISTANT: a star</s>"
        with torch.no_grad():
            logits = theirs(input_ids=ids, pixel_values=pixels()[:1]).logits[0].log_softmax(dim=-1)
        expected = sum(float(logits[place - 1, label]) for place, label in enumerate(row.labels) if label >= 0)
        format_prompt = replace(model.config, format_prompt=False)
        model.config = format_prompt  # the question as it is
        assert float(model.answer_likelihood(PICTURES[:1], ["What is it?"], ["a star"])) == pytest.approx(expected, abs=1e-3)


# ---------------------------------------------------------------------------------------------------------- refused


def test_a_run_folder_cannot_leave_out_what_is_no_method(tmp_path: Path) -> None:
    models.save(published(saved(transformers.FlavaForPreTraining(flava_config()), BERT, tmp_path / "hub")), tmp_path / "run")
    path = tmp_path / "run" / "model.json"
    content = json.loads(path.read_text())
    for wrong in (["text"], "unmask", ["config"], [1]):
        path.write_text(json.dumps(content | {"without": wrong}))
        with pytest.raises(ValueError, match=r"without is .* expected names of methods of flava"):
            models.load(tmp_path / "run")


def test_what_is_not_built_here_is_refused(tmp_path: Path) -> None:
    config = flava_config()
    config.image_config.qkv_bias = False
    theirs = transformers.FlavaForPreTraining(config)
    with pytest.raises(ValueError, match="biases of queries"):
        published(saved(theirs, BERT, tmp_path))


def test_training_brings_back_what_was_left_out(tmp_path: Path) -> None:
    ours: Any = published(saved(transformers.FlavaForPreTraining(flava_config()), BERT, tmp_path))
    assert ours.unmask is None
    ours.leave_out(())
    assert isinstance(ours, Unmasks)


def test_another_end_is_kept_on_disk(tmp_path: Path) -> None:
    OPT.save_pretrained(tmp_path)
    found = HubTokenizer(str(tmp_path))
    newline = found.encode("\n")[0]
    found.end_with(newline)
    again = HubTokenizer("again", found.describe())
    for each in (found, again):
        assert (each.start, each.end, each.pad) == (OPT.bos_token_id, newline, OPT.pad_token_id)
        assert each.vocab_size == len(OPT)
        assert each.encode("a red circle\n") == OPT.encode("a red circle", add_special_tokens=False)


def _saved_and_loaded(model: Any, folder: Path) -> Any:
    models.save(model, folder)
    return models.load(folder)


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.detach(), dim=-1)


def _embedded(theirs: Any, row: list[int]) -> Tensor:
    """The language model's input for the first picture and a row of ids, of which -1 are queries."""
    with torch.no_grad():
        states = theirs.vision_model(pixels()[:1]).last_hidden_state
        queries = theirs.qformer(query_embeds=theirs.query_tokens, encoder_hidden_states=states).last_hidden_state
        words = theirs.get_input_embeddings()(torch.tensor([[token for token in row if token >= 0]]))
        return torch.cat([theirs.language_projection(queries), words], dim=1)


def _logits(theirs: Any, row: list[int]) -> Tensor:
    with torch.no_grad():
        return theirs.language_model(inputs_embeds=_embedded(theirs, row)).logits[0]


def _written(theirs: Any, row: list[int]) -> str:
    never = {*OPT.all_special_ids, *range(len(OPT), LANGUAGE["vocab_size"])}
    ids: list[int] = []
    while len(ids) < 32:
        logits = _logits(theirs, [*row, *ids])[-1]
        logits[[token for token in never if token != LANGUAGE["eos_token_id"]]] = -torch.inf
        best, second = logits.topk(2).values.tolist()
        assert best - second > 1e-3, "rounding would decide what is written: take another seed"
        if (token := int(logits.argmax())) == LANGUAGE["eos_token_id"]:
            break
        ids.append(token)
    return str(OPT.decode(ids).strip())
