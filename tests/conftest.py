"""Files that take long start first, so that the workers of `make test` end together."""

from __future__ import annotations

import pytest

LONG = ("test_toy", "test_train", "test_run", "test_stress", "test_contract", "test_paper_presets", "test_command", "test_bench", "test_ranks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))  # a stable sort: else as collected
