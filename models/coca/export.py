"""CoCa as a folder of open_clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from open_clip import create_model_and_transforms
from PIL import Image
from safetensors.torch import save_file

from data.files import write_text
from models.coca.convert import to_open_clip
from models.coca.model import CoCa
from models.shared.convert import State
from models.shared.export import TEXTS, Check, Unsupported, fast_tokenizer, pictures, refuse_other_towers
from models.shared.text import OpenCLIPTokenizer


def refuse_open_clip(model: Any) -> None:
    if not isinstance(model, CoCa):
        raise Unsupported(f"open_clip has no {type(model).__name__} with these layers")
    config, vision, text = model.config, model.config.vision, model.config.text
    refuse_other_towers(vision, "open_clip")
    if vision.pool != "token" or not vision.pre_norm:
        raise Unsupported(
            "open_clip's CoCa has a class token and a norm before its image blocks, and this tower has not: train with "
            "--model.vision.pool token --model.vision.pre-norm"
        )
    if vision.activation not in ("gelu", "quick_gelu") or text.activation != vision.activation:
        raise Unsupported(f"open_clip's CoCa has GELU or quick GELU in both towers; these have {vision.activation} and {text.activation}")
    if vision.norm_eps != 1e-5 or text.norm_eps != 1e-5:
        raise Unsupported("open_clip's norms have an eps of 1e-5")
    if text.mlp_ratio != 4 or config.embed_dim != text.width:
        raise Unsupported("open_clip's CoCa has an embedding as wide as its text layers, and MLPs four times as wide; this one has not")
    if model.tokenizer.pad == model.tokenizer.end:
        raise Unsupported(f"open_clip tells padding by its id, and the tokenizer {model.tokenizer.name!r} has the end's")


def open_clip(model: CoCa, folder: Path) -> list[Check]:
    """open_clip_config.json and open_clip_model.safetensors, for `open_clip.create_model("local-dir:FOLDER")`."""
    refuse_open_clip(model)
    config, vision, text, tokenizer = model.config, model.config.vision, model.config.text, model.tokenizer
    both = {"context_length": config.context, "vocab_size": config.vocab_size, "width": text.width, "heads": text.heads}
    cfg = {
        "embed_dim": config.embed_dim,
        "quick_gelu": text.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layers": vision.depth,
            "width": vision.width,
            "head_width": vision.width // vision.heads,
            "mlp_ratio": vision.mlp_ratio,
            "attentional_pool": True if config.pooling == "single" else config.pooling,
            "attn_pooler_queries": config.queries,
            "attn_pooler_heads": config.pooler_heads,
            "output_tokens": True,
        },
        "text_cfg": both | {"layers": text.depth, "embed_cls": True, "output_tokens": True, "pad_id": tokenizer.pad},
        "custom_text": True,  # with it, open_clip looks for the text decoder
        "multimodal_cfg": both | {"layers": config.multimodal_depth},
        "pad_id": tokenizer.pad,
    }
    preprocess = {"mean": list(config.mean), "std": list(config.std), "interpolation": "bicubic", "resize_mode": "shortest"}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "open_clip_config.json", json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}, indent=1))
    state = to_open_clip(dict(model.state_dict()) | ({} if config.second_mlp else _mlps_that_add_nothing(model)))
    content = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    save_file(content, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    if not isinstance(tokenizer, OpenCLIPTokenizer):
        fast_tokenizer(tokenizer, config.context).save_pretrained(folder)
        print("open_clip loads tokenizers of the hub only: encode texts with transformers' AutoTokenizer.from_pretrained of this folder")

    theirs: Any
    theirs, _, transform = create_model_and_transforms(f"local-dir:{folder}")
    theirs.eval()
    if not config.shifted_mask:
        print("after loading, set model.text.correct_cls_mask = True: open_clip's own mask of padding is one place off")
        theirs.text.correct_cls_mask = True
    images = pictures(vision.image_size, len(TEXTS))
    ids = model.collate.texts(TEXTS)
    ids = torch.nn.functional.pad(ids, (0, config.context - ids.shape[1]), value=tokenizer.pad)
    with torch.no_grad():
        features, tokens = theirs._encode_image(torch.stack([transform(Image.fromarray(each)) for each in images]))
        read, states = theirs._encode_text(ids)
        logits = theirs.text_decoder(tokens, states[:, :-1])
        mine = model.text.look(model.text.read(ids)[0][:, :-1], model._look(model._pixels(images))[1])
    if features.ndim == 3:
        print("its encode_image returns [N, 1, D] with this pooling: take [:, 0]")
        features = features[:, 0]
    real = model.text.real(ids)[:, 1:]
    return [
        Check.of("image features", model.encode_image(images), features),
        Check.of("text features", model.encode_text(TEXTS), read),
        Check.of("logits of captions", mine[real], logits[real]),
    ]


def _mlps_that_add_nothing(model: CoCa) -> State:
    """open_clip's multimodal layers have an MLP more than the paper's: one of zeros."""
    width, hidden = model.config.text.width, 4 * model.config.text.width
    found: State = {}
    for layer in range(model.config.multimodal_depth):
        sizes = {"norm.weight": (width,), "norm.bias": (width,), "fc1.weight": (hidden, width), "fc1.bias": (hidden,)}
        sizes |= {"fc2.weight": (width, hidden), "fc2.bias": (width,)}
        found |= {f"text.multimodal.{layer}.mlp1.{name}": torch.zeros(size) for name, size in sizes.items()}
    return found
