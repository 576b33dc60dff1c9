"""The GPU section of RESULTS.md: results of `make gpu`, and items that have not been run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from eval.report import words
from eval.report.numbers import number
from recipes.gpu.stages import STAGES
from recipes.tools.collect import Json
from recipes.tools.markdown import code, origins, ratio, table

GPU = """
## GPU

What `make gpu` found on a GPU within minutes, stage by stage. MFU is the share of the bf16 matrix product's rate that was measured in the
same run. Backbones of the hub have random weights where only speed is measured.
"""
NOT_RUN = "not run on a GPU yet"
CHECKS = ("features", "losses", "gradients", "bf16", "compile", "resume")


def gpu_section(items: Mapping[str, Json]) -> list[str]:
    """`items`: those of results/gpu.json by name, "check clip" for page `clip` in stage `check`."""
    by_stage = {stage: {name: each for name, each in items.items() if name.split(" ")[0] == stage} for stage in STAGES}
    rows = [[stage, shows, _state(by_stage[stage])] for stage, shows in STAGES.items()]
    lines = [GPU, *table(("stage", "shows", "state"), "lll", rows), ""]
    peak = items.get("machine", {}).get("tflops", {})
    tables: dict[str, Callable[[str, Json], list[list[str]]]] = {
        "machine": _machine,
        "check": _check,
        "pace": lambda name, item: _pace(name, item, peak.get("bf16")),
        "versus": _versus,
        "train": _train,
    }
    for stage, made in tables.items():
        if found := by_stage[stage]:
            heads, align = HEADS[stage]
            lines += [f"### GPU: {stage}", ""]
            body = [row for name, item in found.items() for row in _shown(name, item, made, len(heads))]
            lines += [*table(heads, align, body), ""]
    measured = [(name, item) for name, item in items.items() if item["status"] != "no time"]
    return [*lines, *origins("Measured", measured)]


HEADS = {
    "machine": (("product", "TFLOP/s", "code"), "lrl"),
    "check": (("page", *CHECKS, "waits in a step", "state", "code"), "l" + "r" * (len(CHECKS) + 1) + "ll"),
    "pace": (("page", "stage", "batch", "samples/s", "MFU", "memory", "waiting for data", "code"), "llrrrrrl"),
    "versus": (("", "ours", "theirs", "times faster", "code"), "lllrl"),
    "train": (("page", "minutes", "samples", "memory", "evaluation", "code"), "lrrrrl"),
}


def _state(items: Mapping[str, Json]) -> str:
    ran = {name: each for name, each in items.items() if each["status"] != "no time"}
    if not ran:
        return NOT_RUN
    states = [each["status"] for each in ran.values()]
    counted = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    return ", ".join([*counted, *([f"{len(items) - len(ran)} {NOT_RUN}"] if len(ran) < len(items) else [])])


def _shown(name: str, item: Json, made: Callable[[str, Json], list[list[str]]], width: int) -> list[list[str]]:
    """The rows of an item, or one that says why there are none."""
    short = name.split(" ", 1)[-1]
    if item["status"] == "no time":
        return [_wide([short, NOT_RUN], width)]
    rows = made(short, item)
    if not rows:
        why = str(item.get("error") or item.get("why") or "").strip().splitlines()
        return [_wide([short, f"{item['status']}: {why[-1][:140]}" if why else item["status"]], width, code(item))]
    return rows


def _wide(cells: list[str], width: int, last: str = "") -> list[str]:
    return [*cells, *[""] * (width - len(cells) - 1), last]


def _machine(name: str, item: Json) -> list[list[str]]:
    return [[f"{kind}, {item['size']} x {item['size']}", f"{value:,.1f}", code(item)] for kind, value in item.get("tflops", {}).items()]


def _check(name: str, item: Json) -> list[list[str]]:
    failures = item.get("failures", {})
    if "training" not in item and "training" not in failures:
        return []
    missed = {"features": "parity", "losses": "parity", "gradients": "parity"}
    values = ["failed" if missed.get(what, what) in failures and what not in item else _small(item.get(what)) for what in CHECKS]
    waits = item.get("synchronisations")
    state = f"failed: {', '.join(failures)}" if failures else item["status"]
    return [[name, *values, words.MISSING if waits is None else str(len(waits)), state, code(item)]]


def _small(value: Any) -> str:
    return words.MISSING if value is None else f"{number(value):.1g}"


def _pace(name: str, item: Json, peak: float | None) -> list[list[str]]:
    return [
        [
            name,
            stage,
            str(each["batch"]),
            f"{each['samples_per_s']:,.0f}",
            words.MISSING if peak is None else f"{each['tflops'] / peak:.0%}",
            f"{each['memory_mb'] / 1024:,.1f} GB",
            f"{each['data_wait_share']:.0%}",
            code(item),
        ]
        for stage, each in item.get("stages", {}).items()
    ]


def _versus(name: str, item: Json) -> list[list[str]]:
    return [
        [f"{row['what']}{', ' + row['alike'] if row['alike'] else ''}", row["ours"], row["theirs"], *_ratio(row), code(item)]
        for row in item.get("rows", ())
    ]


def _ratio(row: Json) -> list[str]:
    return [ratio(row["times_faster"], row["low"], row["high"])]


def _train(name: str, item: Json) -> list[list[str]]:
    if "evaluation_seconds" not in item:
        return []
    minutes, memory = f"{item['train_seconds'] / 60:.1f}", f"{item['peak_memory_mb'] / 1024:,.1f} GB"
    return [[name, minutes, f"{item['samples_seen']:,}", memory, words.duration(item["evaluation_seconds"]), code(item)]]
