"""Files that take long start first, so that the workers of `make test` end together."""

from __future__ import annotations

import pytest

LONG = tuple("test_" + name for name in ["train", "run", "contract", "stress", "paper_presets", "toy", "command", "bench", "gpu", "ranks"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))  # a stable sort: else as collected


@pytest.fixture(autouse=True)
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without Java, whose programs take seconds to start: tests/eval/test_caption_scores.py has them."""
    monkeypatch.setattr("eval.captions.java.has_java", lambda: False)
    monkeypatch.setattr("eval.captions.tokens.has_java", lambda: False)
