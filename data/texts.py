"""The texts of a split, for training tokenizers, without decoding its pictures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data.decode import Tally, Unusable, describe, read_shard
from data.shards import Split

_NO_IMAGE = np.empty((0, 0, 3), np.uint8)


def texts(split: Split, limit: int | None = None, *, questions: bool = False) -> Iterator[str]:
    """Captions and texts of pages, and optionally questions with their answers, in shard order, of at most `limit` samples. Samples that
    cannot be read are skipped here; the loader counts them."""
    seen = 0
    for url in split.to_read:
        for members in read_shard(url, Tally(), split.kept(url)):
            if seen == limit:
                return
            seen += 1
            try:
                sample = describe(members, _NO_IMAGE, Tally())
            except Unusable:
                continue
            yield from sample.texts
            if questions:
                yield from (f"{each.question} {each.answer}" for each in sample.questions)
