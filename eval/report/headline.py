"""Which numbers stand for a task where there is room for few."""

from __future__ import annotations

import re

from eval.report.results import Key

# Task -> the metrics that stand for it, as patterns; each shows the first metric that it matches whole. A task that is not
# listed is shown by its first metric; one without patterns is in its own table only.
CHOSEN: dict[str, tuple[str, ...]] = {
    "zeroshot": (r"shape|top-1",),
    "retrieval": (r"i2t R@1\b.*",),
    "captioning": (r"CIDEr.*", r"object.*F1|F1.*"),
    "winoground": (r"group.*",),
    "foils": (r"swap_attribute|swap.*", r"swap_relation|relation.*"),
    "probe": (r"shape|top-1",),
    "bias": (),
    "memorisation": (),
}


def headline(keys: list[Key]) -> list[Key]:
    """The columns of the overview, in the order of the tasks, each on the task's first split."""
    shown: list[Key] = []
    for task in dict.fromkeys(key.task for key in keys):
        of_task = [key for key in keys if key.task == task]
        there = [key for key in of_task if key.split == of_task[0].split]
        if task not in CHOSEN:
            shown.append(there[0])
        for pattern in CHOSEN.get(task, ()):
            shown += [key for key in there if re.fullmatch(pattern, key.metric) and key not in shown][:1]
    return shown
