"""Tokenizers with a common interface: a small BPE trained on the captions, open_clip's, or one from the hub.

A tokenizer is a picklable object with `vocab_size`, `pad`, `start`, `end`, `mask` (ids; `start` and `mask` may be None, and `start`,
`end` and `pad` may be the same token, as in GPT-2) and `encode(text) -> list[int]`, which adds neither start nor end. Models lay out
sequences in their own way; `layout` is the usual one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from data.files import FileError, read_text, write_text
from models.shared.sources import fetched, run_folder, without_panic
from models.shared.wheels import located


class Tokenizer(Protocol):
    name: str
    vocab_size: int
    pad: int
    start: int | None
    end: int
    mask: int | None

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


def place_of_end(ids: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Position `[B]` of the first end token in each text `[B, T]` made by `layout`. The start token does not count, even if it is the same
    token."""
    first = 0 if tokenizer.start is None else 1
    return (ids[:, first:] == tokenizer.end).int().argmax(dim=1) + first


def until_end(ids: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Mask `[B, T]` that is True up to and including the first end token (`place_of_end`), regardless of the padding id."""
    return torch.arange(ids.shape[1], device=ids.device) <= place_of_end(ids, tokenizer)[:, None]


def of_like_length(lengths: Tensor, groups: int) -> tuple[list[tuple[Tensor, int]], Tensor]:
    """Rows of like length in about as many `groups`, each with its longest length, so that little is padding; and the order of rows that
    brings what was found for one group after another back into the order of `lengths` `[B]`. On a CPU only: the host waits for lengths."""
    order = lengths.argsort()
    return [(rows, int(lengths[rows].max())) for rows in order.chunk(groups)], order.argsort()


class BPETokenizer:
    """Lower-cased byte-level BPE like CLIP's, trained on captions. Ids 0, 1 and 2 are padding, start and end."""

    pad = 0
    start: int | None = 1
    end = 2
    mask: int | None = None

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


@cache
def _simple_tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()  # some tenths of a second: it reads its 48,894 merges


class OpenCLIPTokenizer:
    """CLIP's BPE with 49,408 tokens, which is part of the open_clip package and works offline. Padding is 0, as in the released models."""

    name = "open_clip"
    pad = 0
    mask: int | None = None

    def __init__(self) -> None:
        self.inner = _simple_tokenizer()
        self.vocab_size = self.inner.vocab_size
        self.start: int | None = self.inner.sot_token_id
        self.end: int = self.inner.eot_token_id

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode([i for i in ids if i not in (self.pad, self.start, self.end)]).strip()


SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")  # transformers' names


class HubTokenizer:
    """A transformers tokenizer, from a hub id or local folder (`google/siglip-base-patch16-224`, `gpt2`, ...) or from a description made
    by `describe`.

    If it has no start and end tokens, but a class token and a separator, as BERT's, these are its start and end. Raises ValueError if
    it has no end token at all, or no fast form (tokenizer.json), which a run folder needs.
    """

    def __init__(self, source: str, described: dict[str, Any] | None = None) -> None:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        self.name = source
        self.inner: Any
        if described is None:
            self.inner = fetched(f"tokenizer {source!r}", AutoTokenizer.from_pretrained, located(source), trust_remote_code=False)
        else:
            fast = _fast(json.dumps(described["fast"]))
            special = {name: token for name, token in described["special"].items() if name in SPECIAL and isinstance(token, str)}
            self.inner = PreTrainedTokenizerFast(tokenizer_object=fast, **special)
        if getattr(self.inner, "backend_tokenizer", None) is None:
            raise ValueError(f"tokenizer {source!r} has no fast form (tokenizer.json), which a run folder could hold: name another one")
        ids = [self._id("bos_token", "cls_token"), self._id("eos_token", "sep_token"), self._id("pad_token"), self._id("mask_token")]
        if ids[1] is None:
            raise ValueError(f"tokenizer {source!r} has neither an end (eos_token) nor a separator (sep_token): no text could end")
        self.vocab_size = 1 + max(self.inner.get_vocab().values())
        self.start: int | None = ids[0]
        self.end: int = ids[1]
        self.pad: int = self.end if ids[2] is None else ids[2]
        self.mask: int | None = ids[3]
        self._find_what_is_not_text()

    def end_with(self, token: int) -> None:
        """Texts end with another token of the vocabulary from here on, and padding stays as it is. For a model that was trained so."""
        if self.inner.pad_token_id is None:
            self.inner.pad_token = self.inner.convert_ids_to_tokens(self.pad)
        if self.inner.bos_token_id is None and self.start is not None:
            self.inner.bos_token = self.inner.convert_ids_to_tokens(self.start)
        self.inner.eos_token = self.inner.convert_ids_to_tokens(token)
        self.end = token
        self._find_what_is_not_text()

    def _find_what_is_not_text(self) -> None:
        # A text that contains "</s>" does not end there: it is split like any other word, or left out where it is one piece (Unigram's).
        self._not_text = {token for token in (self.start, self.end, self.pad, self.mask) if token != self.inner.unk_token_id}

    def _id(self, *names: str) -> int | None:
        """Of the first of these special tokens that it has."""
        return next((found for name in names if (found := getattr(self.inner, f"{name}_id")) is not None), None)

    def encode(self, text: str) -> list[int]:
        ids = self.inner.encode(text, add_special_tokens=False, split_special_tokens=True)
        return [token for token in ids if token not in self._not_text]

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode(list(ids), skip_special_tokens=True).strip()

    def describe(self) -> dict[str, Any]:
        """A complete JSON-serialisable description."""
        special = {name: str(token) for name in SPECIAL if (token := getattr(self.inner, name)) is not None}
        return {"tokenizer": self.name, "special": special, "fast": json.loads(self.inner.backend_tokenizer.to_str())}


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """`tokenizer.json`, see `as_text`."""
    write_text(folder / "tokenizer.json", as_text(tokenizer))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Raises FileError where the file is missing, cut short, no tokenizer, or names one elsewhere."""
    path, cure = folder / "tokenizer.json", "Remove the run folder, and train it again"
    text = read_text(path, cure)
    try:
        return from_text(text, str(path))
    except (ConnectionError, FileError):  # a hub tokenizer that is out of reach says so itself
        raise
    except Exception as error:  # the tokenizers library raises plain Exceptions
        raise FileError(f"{path} holds no tokenizer ({type(error).__name__}: {' '.join(str(error).split())[:200]}). {cure}") from error


def as_text(tokenizer: Tokenizer) -> str:
    """The tokenizer as JSON, so that a run loads without the hub; for the one that open_clip provides, only the name."""
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.fast.to_str()
    return json.dumps(tokenizer.describe() if isinstance(tokenizer, HubTokenizer) else {"tokenizer": tokenizer.name})


def _fast(text: str) -> FastTokenizer:
    with without_panic():
        return FastTokenizer.from_str(text)


def from_text(text: str, file: str = "a tokenizer.json") -> Tokenizer:
    """Inverse of `as_text`. A name in `text` is not followed: loading a run folder must not read anything outside it."""
    content: dict[str, Any] = json.loads(text)
    if "tokenizer" not in content:
        return BPETokenizer(_fast(text))
    if "fast" in content:
        return HubTokenizer(content["tokenizer"], content)
    if content["tokenizer"] == OpenCLIPTokenizer.name:
        return OpenCLIPTokenizer()
    raise FileError(
        f"{file} names {str(content['tokenizer'])[:200]!r} instead of holding a tokenizer, and names in a run folder are not followed: "
        "train the run again, or put the tokenizer itself there (models.shared.text.save_tokenizer)"
    )


def named_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer by name: `open_clip`, a run (`tiny:lm` or its folder), or a hub id or folder for transformers' AutoTokenizer
    (which needs the network unless it is cached)."""
    if name == "open_clip":
        return OpenCLIPTokenizer()
    run = run_folder(name)
    return load_tokenizer(run) if run else HubTokenizer(name)
