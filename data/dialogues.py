"""Conversations about all pictures of a sample. They are its page, after the pictures: a request, its reply, the next request, and so on;
`extra["kinds"]` names the kind of each request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.sample import Sample


def turns_of(sample: Sample) -> list[tuple[str, str]]:
    """(request, reply) pairs about the pictures of a sample; [] for a sample without such a conversation."""
    if "kinds" not in sample.extra:
        return []
    texts = [part for part in sample.page if isinstance(part, str)]
    return list(zip(texts[::2], texts[1::2], strict=False))


def conversation(pictures: Sequence[np.ndarray], turns: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """The fields of a sample with a conversation of (request, reply, kind): `others`, `page`, and what belongs into its `extra`."""
    page = (*range(len(pictures)), *(text for request, reply, _ in turns for text in (request, reply)))
    return {"others": tuple(pictures[1:]), "page": page, "extra": {"kinds": [kind for _, _, kind in turns]}}
