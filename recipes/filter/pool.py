"""Run filters over a split, write the list of what they keep, and hold it against the truth where that is known."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from rich.progress import track

from data.decode import Tally, decode, read_shard
from data.keep import write_list
from data.sample import Sample
from data.shards import DataError, Split
from recipes.filter.filters import Filter, Verdict
from recipes.filter.scores import CLEAN, TRUTH

AT_ONCE = 256  # samples
MAX_DROP_SHARE = 0.1

Json = dict[str, Any]


@dataclass
class Pool:
    """The samples that filters have seen, in their order: shard and key, and what is wrong with each, None where that is not known."""

    split: Split
    tally: Tally = field(default_factory=Tally)
    places: list[tuple[str, str]] = field(default_factory=list)
    truth: list[str | None] = field(default_factory=list)


def see(split: Split, filters: Iterable[Filter]) -> Pool:
    """Show every usable sample with a caption to the filters. Raises DataError for data that cannot be used."""
    pool, filters = Pool(split), list(filters)
    stream = _samples(split, pool.tally)
    total = None if split.samples is None else -(-split.samples // AT_ONCE)
    for chunk in track(iter(lambda: list(islice(stream, AT_ONCE)), []), split.name, total, disable=not sys.stderr.isatty()):
        samples = [sample for _, sample in chunk]
        pool.places += [(url, sample.key) for url, sample in chunk]
        pool.truth += [sample.extra.get(TRUTH) for sample in samples]
        for each in filters:
            each.see(samples)
    pool.tally.check(MAX_DROP_SHARE, f"{split.name}/{split.split}")
    return pool


def write_kept(pool: Pool, verdicts: Mapping[str, Verdict], out: Path) -> Json:
    """Write the list of the samples that all filters keep. Returns its first line:

    pool, split, hash    of the data
    seen, dropped        number of samples, and what was left out by reason: no filter saw these
    kept                 number of samples in the list
    by                   for each filter: its rule, its settings, and what it keeps alone
    truth                where it is known: precision, recall, clean (their share in the pool), kept_of {kind: share}

    Raises DataError if no sample is left; FileError if the list cannot be written.
    """
    split = pool.split
    keep = np.logical_and.reduce([verdict.keep for verdict in verdicts.values()])
    if not keep.any():
        rules = "; ".join(f"{name} keeps {verdict.keep.sum():,} ({verdict.rule})" for name, verdict in verdicts.items())
        raise DataError(f"no sample of {split.name}/{split.split} is left of {len(keep):,}: {rules}. Loosen a filter")
    about: Json = {
        "seen": len(keep),
        "dropped": dict(pool.tally.drops),
        "kept": int(keep.sum()),
        "by": {name: {"rule": each.rule, **each.about, "kept": int(each.keep.sum())} for name, each in verdicts.items()},
    }
    if all(kind is not None for kind in pool.truth):
        about["truth"] = against_truth(keep, np.array(pool.truth))
    rows = ((*pool.places[row], _found(verdicts, row)) for row in np.flatnonzero(keep).tolist())
    write_list(out, split, rows, **about)
    return {"pool": split.name, "split": split.split, "hash": split.hash, **about}


def against_truth(keep: np.ndarray, kinds: np.ndarray) -> Json:
    """keep: bool `[N]`; kinds: what is wrong with each sample, `[N]`."""
    clean = kinds == CLEAN
    both = int((keep & clean).sum())
    return {
        "precision": both / max(1, int(keep.sum())),
        "recall": both / max(1, int(clean.sum())),
        "clean": float(clean.mean()),
        "kept_of": {kind: float(keep[kinds == kind].mean()) for kind, _ in Counter(kinds.tolist()).most_common()},
    }


def report(about: Json, out: Path) -> Iterator[str]:
    """The result in lines of text."""
    yield f"{about['pool']}/{about['split']}: {about['seen']:,} samples"
    if about["dropped"]:
        yield f"  left out before: {', '.join(f'{count:,} x {reason}' for reason, count in about['dropped'].items())}"
    for name, found in about["by"].items():
        yield f"  {name}: keeps {found['kept']:,}, {found['kept'] / about['seen']:.1%} ({found['rule']})"
    yield f"  kept: {about['kept']:,}, {about['kept'] / about['seen']:.1%}"
    if truth := about.get("truth"):
        yield f"  precision {truth['precision']:.3f} (of the pool {truth['clean']:.3f} is clean), recall {truth['recall']:.3f}"
        yield f"  kept of each kind: {', '.join(f'{kind} {share:.1%}' for kind, share in truth['kept_of'].items())}"
    yield f'{out}: train on it with ARGS="--keep {quote(str(out))}"'


def _samples(split: Split, tally: Tally) -> Iterator[tuple[str, Sample]]:
    """Every usable sample with a caption, with its shard, in the order of shards and files."""
    for url in split.to_read:
        for members in read_shard(url, tally):
            if (sample := decode(members, ("captions",), tally)) is not None:
                yield url, sample


def _found(verdicts: Mapping[str, Verdict], row: int) -> Json:
    return {name: _plain(verdict.scores[row]) for name, verdict in verdicts.items()}


def _plain(score: Any) -> float | int:
    return round(float(score), 5) if np.issubdtype(type(score), np.floating) else int(score)
