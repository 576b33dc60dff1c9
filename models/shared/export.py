"""Write trained models as folders that other libraries load, and check there what they compute.

A package's export.py has two functions for each format: `refuse_transformers(model)`, which raises Unsupported for a model that the format
cannot hold, and `transformers(model, folder) -> list[Check]`, which writes the folder, loads it back with that library, and compares. Here
is what packages share, and the formats of every image tower (timm) and dual encoder (onnx).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from tokenizers import processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from data.files import write_text
from models.shared.images import HALF
from models.shared.text import BPETokenizer, HubTokenizer, Tokenizer
from models.shared.towers import NamedTower
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig

TEXTS = ("a small red star", "two people walk along the beach", "", "A DOG, and a cat!")


class Unsupported(ValueError):
    """A format that cannot hold this model."""


class Format(NamedTuple):
    """How models are written for a library, and which are refused."""

    write: Callable[[Any, Path], list[Check]]
    refuse: Callable[[Any], None]


@dataclass(frozen=True)
class Check:
    """What both sides compute of the same input, compared."""

    what: str
    largest: float
    """difference"""
    limit: float

    @classmethod
    def of(cls, what: str, ours: Tensor, theirs: Tensor, limit: float = 1e-5) -> Check:
        if ours.shape != theirs.shape:
            raise ValueError(f"{what}: our shape is {tuple(ours.shape)}, theirs {tuple(theirs.shape)}")
        return cls(what, float((ours.double() - theirs.double()).abs().max()), limit)


def pictures(size: int, count: int = 3) -> list[np.ndarray]:
    """Random uint8 `[size, size, 3]`, which no resizing changes."""
    return list(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def fast_tokenizer(tokenizer: Tokenizer, context: int) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers has it: `start tokens end`, cut and padded to `context`. Raises Unsupported for open_clip's own."""
    if isinstance(tokenizer, HubTokenizer):
        return tokenizer.inner
    if not isinstance(tokenizer, BPETokenizer):
        raise Unsupported(f"transformers cannot hold the tokenizer {tokenizer.name!r}: use the one of openai/clip-vit-base-patch32")
    fast = type(tokenizer.fast).from_str(tokenizer.fast.to_str())
    start, end = "<start>", "<end>"
    single = f"{start} $A {end}"
    fast.post_processor = processors.TemplateProcessing(
        single=single, pair=None, special_tokens=[(start, tokenizer.start), (end, tokenizer.end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token=start, eos_token=end, pad_token="<pad>", model_max_length=context, padding_side="right"
    )


def refuse_other_towers(config: VisionConfig, library: str) -> None:
    """Towers that are not the plain vision transformer which a library has in a model."""
    if config.stem == "conv":
        raise Unsupported(f"{library} has no vision transformer that begins with convolutions, as presets of the size tiny do")
    if config.tower:
        raise Unsupported(f"{library} has a tower of its own in this place, and this one is {json.loads(config.tower)['source']!r}")


def their_tower(config: TransformerConfig) -> dict[str, Any]:
    """A tower in the words of transformers' CLIP and SigLIP."""
    return {
        "hidden_size": config.width,
        "intermediate_size": int(config.width * config.mlp_ratio),
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "hidden_act": {"gelu_tanh": "gelu_pytorch_tanh", "squared_relu": "relu2"}.get(config.activation, config.activation),
        "layer_norm_eps": config.norm_eps,
    }


# ------------------------------------------------------------------------------------------- formats of many models


def refuse_timm(model: Any) -> None:
    config, visual = getattr(getattr(model, "config", None), "vision", None), getattr(model, "visual", None)
    if not isinstance(config, VisionConfig) or not isinstance(visual, nn.Module) or vars(model.config).get("timm_name"):
        raise Unsupported(f"timm holds image towers, and this {type(model).__name__} has no vision transformer of its own")
    if config.stem == "conv" or (config.tower and json.loads(config.tower)["library"] != "timm"):
        refuse_other_towers(config, "timm")
    if config.activation == "squared_relu":
        raise Unsupported("timm has no activation squared_relu")
    with torch.device("meta"):
        theirs = timm.create_model(_architecture(config), **(_arguments(config) | {"num_classes": 0}))
    if theirs.state_dict().keys() != _inner(visual).state_dict().keys():
        raise Unsupported(
            f"timm's towers are whole, and this {type(model).__name__} reads its tower's states before the last block or norm"
        )


def timm_tower(model: Any, folder: Path) -> list[Check]:
    """The image tower `model.visual` as a folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    refuse_timm(model)
    config, visual = model.config.vision, _inner(model.visual)
    mean, std = getattr(model.config, "mean", HALF), getattr(model.config, "std", HALF)
    size = (3, config.image_size, config.image_size)
    about = {"input_size": size, "mean": mean, "std": std, "interpolation": "bicubic", "crop_pct": 1.0, "num_classes": 0}
    content = {"architecture": _architecture(config), "num_classes": 0, "model_args": _arguments(config), "pretrained_cfg": about}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", json.dumps(content, indent=1))
    _save(visual.state_dict(), folder / "model.safetensors")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    norms = [module for module in theirs.modules() if isinstance(module, nn.LayerNorm)]
    if not config.tower and any(norm.eps != config.norm_eps for norm in norms):
        print(f"after loading, set the eps of its norms to {config.norm_eps:g}: timm's own is {norms[0].eps:g}")
        for norm in norms:
            norm.eps = config.norm_eps
    pixels = torch.rand(2, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        return [Check.of("image states", visual.forward_features(pixels), theirs.forward_features(pixels))]


def _inner(visual: nn.Module) -> Any:
    """timm's module of a tower."""
    return visual.inner if isinstance(visual, NamedTower) else visual


def _architecture(config: VisionConfig) -> str:
    return str(json.loads(config.tower)["architecture"]) if config.tower else "vit_base_patch16_224"


def _arguments(config: VisionConfig) -> dict[str, Any]:
    """Of `timm.create_model`."""
    if config.tower:
        return {name: value for name, value in json.loads(config.tower)["arguments"].items() if name != "num_classes"}
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "class_token": config.pool == "token",
        "global_pool": "" if config.pool == "none" else config.pool,
        "pre_norm": config.pre_norm,
        "act_layer": config.activation,  # timm has the same names
    }


def refuse_onnx(model: Any) -> None:
    encoders = all(hasattr(model, name) for name in ("_image_features", "_text_features"))
    if not encoders or not isinstance(getattr(model.config, "vision", None), VisionConfig):
        raise Unsupported(f"onnx holds two encoders of pixels and of tokens, which {type(model).__name__} does not have apart")


def onnx(model: Any, folder: Path) -> list[Check]:
    """image.onnx: uint8 pixels `[N, 3, S, S]` -> L2-normalised features; text.onnx: ids `[N, context]` -> features. With the tokenizer."""
    refuse_onnx(model)
    try:
        import onnxruntime
    except ImportError as error:
        raise Unsupported("onnx needs its libraries: pip install -e '.[onnx]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    size, context = model.config.vision.image_size, model.config.context
    pixels = torch.from_numpy(np.stack(pictures(size))).permute(0, 3, 1, 2).contiguous()
    ids = model.collate.texts(TEXTS)
    ids = torch.nn.functional.pad(ids, (0, context - ids.shape[1]), value=model.tokenizer.pad)
    found = []
    for name, encode, given in (("image", model._image_features, pixels), ("text", model._text_features, ids)):
        path = folder / f"{name}.onnx"
        batch = {0: torch.export.Dim("batch")}
        torch.onnx.export(
            _Encoder(model, encode).eval(), (given,), str(path), dynamo=True, dynamic_shapes=(batch,), input_names=[name],
            output_names=["features"], external_data=False, verbose=False,
        )  # fmt: skip
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for some in (given, given[:1]):
            (theirs,) = session.run(None, {name: some.numpy()})
            with torch.no_grad():
                found.append(Check.of(f"{name} features of {len(some)}", encode(some), torch.from_numpy(theirs), limit=1e-4))
    if isinstance(model.tokenizer, BPETokenizer):
        write_text(folder / "tokenizer.json", fast_tokenizer(model.tokenizer, context).backend_tokenizer.to_str())
    return found


class _Encoder(nn.Module):
    def __init__(self, model: nn.Module, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.encode = model, encode

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)


def _save(state: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, path, metadata={"format": "pt"})


EVERY = {"timm": Format(timm_tower, refuse_timm), "onnx": Format(onnx, refuse_onnx)}
