"""Tokenizers with a common interface: a small BPE trained on the captions, open_clip's, or one from the hub.

A tokenizer is a picklable object with `vocab_size`, `pad`, `start`, `end` (ids; `start` may be None) and
`encode(text) -> list[int]`, which adds neither start nor end. Models lay out sequences in their own way; `layout` is the usual one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from data.files import FileError, read_text, write_text
from models.shared.sources import fetched, run_folder


class Tokenizer(Protocol):
    name: str
    vocab_size: int
    pad: int
    start: int | None
    end: int

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


LONGEST = 10_000  # characters, more than any context holds: BPE takes quadratic time in a long text without blanks


def layout(tokenizer: Tokenizer, texts: Sequence[str], context: int, *, fixed: bool = False) -> Tensor:
    """Token ids `[start] tokens end pad...` as int64 `[B, T]`. Long texts are truncated before `end`.

    T is the longest text of the batch, so that short captions are cheap, or `context` if `fixed`.
    """
    start = [] if tokenizer.start is None else [tokenizer.start]
    rows = [[*[*start, *tokenizer.encode(text[:LONGEST])][: context - 1], tokenizer.end] for text in texts]
    ids = torch.full((len(rows), context if fixed else max(map(len, rows), default=1)), tokenizer.pad)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return ids


def until_end(ids: Tensor, end: int) -> Tensor:
    """Mask `[B, T]` that is True up to and including the first end token, whatever the padding id."""
    length = (ids == end).int().argmax(dim=1, keepdim=True) + 1
    return torch.arange(ids.shape[1], device=ids.device) < length


class BPETokenizer:
    """Lower-cased byte-level BPE like CLIP's, trained on captions. Ids 0, 1 and 2 are padding, start and end."""

    pad = 0
    start: int | None = 1
    end = 2

    def __init__(self, fast: FastTokenizer) -> None:
        self.fast = fast
        self.fast.encode_special_tokens = True  # "<end>" in a caption is plain text
        self.vocab_size: int = fast.get_vocab_size()
        self.name = "bpe"
        self._known: dict[str, list[int]] = {}  # captions repeat every epoch; encoding them costs more than a look-up

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BPETokenizer:
        """Train a BPE with at most `vocab_size` tokens. Raises ValueError if there are no texts."""
        fast = FastTokenizer(models.BPE())
        fast.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        fast.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<pad>", "<start>", "<end>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # covers any text, including unseen characters
            show_progress=False,
        )
        texts = list(texts)
        if not texts:
            raise ValueError("no captions to train a tokenizer on: the training split has none")
        fast.train_from_iterator(texts, trainer)
        return cls(fast)

    def encode(self, text: str) -> list[int]:
        ids = self._known.get(text)
        if ids is None:
            ids = self.fast.encode(text, add_special_tokens=False).ids
            if len(self._known) < 200_000:  # some 100 MB in every worker
                self._known[text] = ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.fast.decode(list(ids), skip_special_tokens=True).strip()

    def __getstate__(self) -> str:
        return self.fast.to_str()

    def __setstate__(self, state: str) -> None:
        self.__init__(FastTokenizer.from_str(state))  # type: ignore[misc]


class OpenCLIPTokenizer:
    """CLIP's BPE with 49,408 tokens, which is part of the open_clip package and works offline. Padding is 0, as in the released models."""

    pad = 0

    def __init__(self) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self.name = "open_clip"
        self.inner = SimpleTokenizer()
        self.vocab_size = self.inner.vocab_size
        self.start: int | None = self.inner.sot_token_id
        self.end: int = self.inner.eot_token_id

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode([i for i in ids if i not in (self.pad, self.start, self.end)]).strip()


class HubTokenizer:
    """A transformers tokenizer, from a hub id or local folder (`google/siglip-base-patch16-224`, `gpt2`, ...) or from a description made
    by `describe`."""

    def __init__(self, source: str, described: dict[str, Any] | None = None) -> None:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        self.name = source
        self.inner: Any
        if described is None:
            self.inner = fetched(f"tokenizer {source!r}", AutoTokenizer.from_pretrained, source)
        else:
            fast = FastTokenizer.from_str(json.dumps(described["fast"]))
            self.inner = PreTrainedTokenizerFast(tokenizer_object=fast, **described["special"])
        self.vocab_size = len(self.inner)
        self.start: int | None = self.inner.bos_token_id
        self.end: int = self.inner.eos_token_id
        self.pad: int = self.end if self.inner.pad_token_id is None else self.inner.pad_token_id

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode(list(ids), skip_special_tokens=True).strip()

    def describe(self) -> dict[str, Any]:
        """A complete JSON-serialisable description, or only the name if transformers implements the tokenizer in Python only."""
        fast = getattr(self.inner, "backend_tokenizer", None)
        if fast is None:
            return {"tokenizer": self.name}
        return {"tokenizer": self.name, "special": self.inner.special_tokens_map, "fast": json.loads(fast.to_str())}


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """`tokenizer.json`, see `as_text`."""
    write_text(folder / "tokenizer.json", as_text(tokenizer))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Raises FileError where the file is missing, cut short, or no tokenizer."""
    path, cure = folder / "tokenizer.json", "Remove the run folder, and train it again"
    text = read_text(path, cure)
    try:
        return from_text(text)
    except (ConnectionError, FileError):  # a hub tokenizer that is out of reach says so itself
        raise
    except Exception as error:  # the tokenizers library raises plain Exceptions
        raise FileError(f"{path} holds no tokenizer ({type(error).__name__}: {' '.join(str(error).split())[:200]}). {cure}") from error


def as_text(tokenizer: Tokenizer) -> str:
    """The tokenizer as JSON, so that a run loads without the hub; for tokenizers that a library provides, only the name."""
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.fast.to_str()
    described = tokenizer.describe() if isinstance(tokenizer, HubTokenizer) else {"tokenizer": tokenizer.name}
    return json.dumps(described, default=str)


def from_text(text: str) -> Tokenizer:
    """Inverse of `as_text`."""
    content: dict[str, Any] = json.loads(text)
    if "tokenizer" not in content:
        return BPETokenizer(FastTokenizer.from_str(text))
    if "fast" in content:
        return HubTokenizer(content["tokenizer"], content)
    return named_tokenizer(content["tokenizer"])


def named_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer by name: `open_clip`, a run (`tiny:lm` or its folder), or a hub id or folder for transformers' AutoTokenizer
    (which needs the network unless it is cached)."""
    if name == "open_clip":
        return OpenCLIPTokenizer()
    run = run_folder(name)
    return load_tokenizer(run) if run else HubTokenizer(name)
