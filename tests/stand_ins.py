"""Small tokenizers of the kinds that published models have: the same special tokens in the same roles, learned from a few texts.

What matters to a model is not the words but which of start, end, padding and mask there are, and which of them are the same token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


def byte_level(texts: Iterable[str], *special: str, size: int = 320, **roles: str) -> Any:
    """GPT-2's algorithm, which RoBERTa and OPT have, too."""
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    fast.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=fast, **roles)


def gpt2(texts: Iterable[str]) -> Any:
    """One token is start and end, and there is no padding."""
    end = "<|endoftext|>"
    return byte_level(texts, end, bos_token=end, eos_token=end, unk_token=end)


def opt(texts: Iterable[str]) -> Any:
    """A text starts with the token that ends it; padding is another."""
    return byte_level(texts, "<s>", "<pad>", "</s>", bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>")


def roberta(texts: Iterable[str]) -> Any:
    """Start, padding, end and a mask of its own."""
    roles = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    return byte_level(texts, *special, **roles, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")


def word_pieces(texts: Iterable[str], *special: str, unknown: str, size: int = 320, **roles: str) -> Any:
    fast = Tokenizer(models.WordPiece(unk_token=unknown))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    fast.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(special), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=fast, unk_token=unknown, **roles)


def bert(texts: Iterable[str]) -> Any:
    """Neither start nor end: a class token, a separator, and a mask."""
    roles = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    return word_pieces(texts, "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", unknown="[UNK]", **roles)


def mpnet(texts: Iterable[str]) -> Any:
    """BERT's words with RoBERTa's special tokens."""
    roles = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    return word_pieces(texts, "<s>", "<pad>", "</s>", "[UNK]", "<mask>", unknown="[UNK]", **roles)


def llama(texts: Iterable[str]) -> Any:
    """Start and end, no padding; a blank is part of the word after it."""
    fast = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    fast.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def qwen(texts: Iterable[str]) -> Any:
    """No start; one token is end and padding. The marks of a conversation are tokens of their own."""
    end = "<|endoftext|>"
    return byte_level(texts, end, "<|im_start|>", "<|im_end|>", eos_token=end, pad_token=end, unk_token=end)


def siglip(texts: Iterable[str]) -> Any:
    """No start; the end is the padding, too. A unigram model, as T5's."""
    fast = Tokenizer(models.Unigram())
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False)
    fast.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>", pad_token="</s>", unk_token="<unk>")


KINDS = {"gpt2": gpt2, "opt": opt, "roberta": roberta, "bert": bert, "mpnet": mpnet, "llama": llama, "siglip": siglip, "qwen": qwen}


def kind_of(name: str) -> str:
    """The kind of a published tokenizer's name."""
    for part in ("gpt2", "opt", "roberta", "bert", "mpnet", "siglip", "qwen"):
        if part in name.lower():
            return part
    if "pythia" in name.lower():
        return "gpt2"  # the same special tokens
    if any(part in name.lower() for part in ("llama", "vicuna")):
        return "llama"
    if "gpt-j" in name.lower():
        return "gpt2"
    if name.startswith("t5"):
        return "siglip"  # T5's, to which SigLIP's belongs: SentencePiece, without a start
    raise ValueError(f"no stand-in of the kind of {name!r}: add one to tests/stand_ins.py")
