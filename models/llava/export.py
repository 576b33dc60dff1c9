"""LLaVA as a folder of transformers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from models.llava.convert import to_transformers
from models.llava.model import LLaVA
from models.shared.chat import Turn
from models.shared.convert import State
from models.shared.export import TEXTS, Check, Unsupported, fast_tokenizer, pictures, refuse_other_towers
from models.shared.generate import not_text
from models.shared.prefix import SOFT, embed
from models.shared.text import BPETokenizer

IMAGE = "<image>"  # the token of the released weights
ODD = "\u2603 \ufffd"  # a text of characters that a vocabulary lacks


def refuse_transformers(model: Any) -> None:
    if not isinstance(model, LLaVA):
        raise Unsupported(f"transformers has no {type(model).__name__} of this kind")
    if model.config.bridge != 2:
        raise Unsupported(f"transformers' LLaVA has two linear layers between tower and language model, and this one {model.config.bridge}")
    if model.language.base_model_prefix != "model":
        raise Unsupported(f"transformers' LLaVA has a language model of a Llama's layout, and this one a {type(model.language).__name__}")
    _tower(model)
    _mark(model)


def transformers(model: LLaVA, folder: Path) -> list[Check]:
    """For `LlavaForConditionalGeneration.from_pretrained(folder)`, with the processor."""
    refuse_transformers(model)
    vision, image = _tower(model), _mark(model)
    template, tokenizer = model.template, _tokenizer(model, image)
    config = LlavaConfig(
        vision_config=vision,
        text_config=copy.deepcopy(model.language.config),
        image_token_id=image,
        image_seq_length=model.places,
        vision_feature_layer=-2 if model.config.states == "penultimate" else -1,
        tie_word_embeddings=model.language.config.tie_word_embeddings,
    )
    theirs: Any = LlavaForConditionalGeneration(config)
    missing, unexpected = theirs.load_state_dict(to_transformers(_merged(model)), strict=False)
    unused = ("model.vision_tower.post_layernorm.", f"model.vision_tower.encoder.layers.{len(model.visual.blocks)}.")
    if unexpected or not all(name.startswith(unused) for name in missing):
        raise ValueError(f"transformers' LLaVA has other tensors: {', '.join([*missing, *unexpected][:5])}")
    with torch.no_grad():
        for name in missing:  # of a block whose states nobody reads
            theirs.get_parameter(name).zero_()
    silent = sorted({image, *not_text(model.tokenizer)} - {model.tokenizer.end})
    ends = {"bos_token_id": model.tokenizer.start, "eos_token_id": model.tokenizer.end, "pad_token_id": model.tokenizer.end}
    theirs.generation_config.update(suppress_tokens=silent, **ends)
    theirs.save_pretrained(folder)
    size = vision.image_size
    processor = CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size=size, image_mean=list(model.config.mean), image_std=list(model.config.std)
    )
    word = tokenizer.convert_ids_to_tokens(image)
    LlavaProcessor(
        processor,
        tokenizer,
        vision.patch_size,
        "default",
        image_token=word,
        num_additional_image_tokens=1,
        chat_template=_chat(model, word),
    ).save_pretrained(folder)

    theirs = LlavaForConditionalGeneration.from_pretrained(folder, trust_remote_code=False).eval()
    images, row = pictures(size), template.conversation([Turn(TEXTS[0], TEXTS[1])])
    ids = torch.tensor([row.ids] * len(images))
    pixels = AutoProcessor.from_pretrained(folder, trust_remote_code=False).image_processor(images=images, return_tensors="pt").pixel_values
    with torch.no_grad():
        found = theirs(input_ids=ids.masked_fill(ids == SOFT, image), pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
        mine = model.language(inputs_embeds=embed(model.language, ids, model.look(images)), attention_mask=torch.ones_like(ids)).logits
    return [Check.of("logits of a reply", mine, found)]


def _tower(model: LLaVA) -> CLIPVisionConfig:
    """transformers' CLIP tower of the same layers, also where timm built ours."""
    if model.config.vision.stem == "conv":
        refuse_other_towers(model.config.vision, "transformers")
    tower: Any = model.visual
    other = Unsupported("transformers' LLaVA has CLIP's tower, with a class token and a norm before its blocks; this tower is another one")
    if not isinstance(tower, VisionTransformer) or not tower.has_class_token or tower.num_prefix_tokens != 1:
        raise other
    if isinstance(tower.norm_pre, nn.Identity) or tower.patch_embed.proj.bias is not None:
        raise other
    (height, width), (patch, _) = tower.patch_embed.img_size, tower.patch_embed.patch_size
    block = tower.blocks[0]
    if height != width or tower.pos_embed.shape[1] != tower.patch_embed.num_patches + 1 or not hasattr(block.mlp, "act"):
        raise other
    return CLIPVisionConfig(
        hidden_size=tower.embed_dim,
        intermediate_size=block.mlp.fc1.out_features,
        num_hidden_layers=len(tower.blocks) + (model.config.states == "penultimate"),
        num_attention_heads=block.attn.num_heads,
        hidden_act=_activation(block.mlp.act),
        layer_norm_eps=block.norm1.eps,
        image_size=height,
        patch_size=patch,
    )


def _activation(module: nn.Module) -> str:
    """transformers' name of an activation. Raises Unsupported."""
    if isinstance(module, nn.GELU):
        return "gelu_pytorch_tanh" if module.approximate == "tanh" else "gelu"
    names = {"ReLU": "relu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_pytorch_tanh"}
    kind = type(module).__name__
    if kind not in names:
        raise Unsupported(f"transformers' CLIP has no activation {kind}")
    return names[kind]


def _mark(model: LLaVA) -> int:
    """The id that marks an image's places: a token that no text has."""
    tokenizer = model.tokenizer
    fast = fast_tokenizer(tokenizer, model.config.context)
    rows, roles, odd = model.language.get_input_embeddings().num_embeddings, {tokenizer.start, tokenizer.end}, tokenizer.encode(ODD)
    for token in (fast.get_vocab().get(IMAGE), tokenizer.pad, fast.unk_token_id):
        if token is not None and token < rows and token not in roles and token not in odd:
            return token
    raise Unsupported(f"transformers marks the places of an image by a token of its own, and the tokenizer {tokenizer.name!r} has none")


def _tokenizer(model: LLaVA, image: int) -> PreTrainedTokenizerFast:
    """Texts are padded by their end where padding marks the image; the attention mask tells the two apart."""
    fast = copy.deepcopy(fast_tokenizer(model.tokenizer, model.config.context))
    fast.backend_tokenizer.post_processor = None  # the template says where a text starts
    if isinstance(model.tokenizer, BPETokenizer):  # a blank before the first word of a text, but none after an image
        first = pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False)
        fast.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    fast.model_max_length = model.language.config.max_position_embeddings
    fast.padding_side = "left"  # of prompts
    if image == model.tokenizer.pad or fast.pad_token is None:
        fast.pad_token = fast.convert_ids_to_tokens(model.tokenizer.end)
    return fast


def _chat(model: LLaVA, image: str) -> str:
    """The conversation as a template of transformers: `processor.apply_chat_template(messages, add_generation_prompt=True)`."""
    signs, fast = model.template.signs, fast_tokenizer(model.tokenizer, model.config.context)
    start, end = ("" if token is None else fast.convert_ids_to_tokens(token) for token in (model.tokenizer.start, model.tokenizer.end))
    blank = " " if isinstance(model.tokenizer, BPETokenizer) else ""
    text = "{% if message['content'] is string %}{{ message['content'] }}{% else %}" + _each("text", "{{ part['text'] }}") + "{% endif %}"
    images = "{% if message['content'] is not string %}" + _each("image", _said(image + signs.closing)) + "{% endif %}"
    asked, reply = _said(signs.human) + images + text + _said(signs.assistant), _said(" ") + text + _said(end)
    turn = f"{{% if message['role'] == 'user' %}}{asked}{{% else %}}{reply}{{% endif %}}"
    return _said(start + blank + signs.system) + f"{{% for message in messages %}}{turn}{{% endfor %}}"


def _each(kind: str, what: str) -> str:
    return f"{{% for part in message['content'] if part['type'] == '{kind}' %}}{what}{{% endfor %}}"


def _said(text: str) -> str:
    """A text as it is, line breaks included."""
    return f"{{{{ {json.dumps(text)} }}}}" if text else ""


def _merged(model: LLaVA) -> State:
    """The weights with their low-rank updates, if there are any."""
    state: State = {name: value for name, value in model.state_dict().items() if not name.startswith("lora.")}
    if model.config.rank:
        with torch.no_grad():
            updates: Any = model.lora
            for name, update in updates.items():
                key = f"language.{name.replace('/', '.')}.weight"
                state[key] = state[key] + update.update()
    return state
