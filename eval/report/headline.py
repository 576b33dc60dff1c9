"""Which numbers stand for a task where there is room for few."""

from __future__ import annotations

import re

from eval.report.results import Key

# Task -> the metrics that stand for it, as patterns; each shows the first metric that it matches whole. A task that is not
# listed is shown by its first metric; one without patterns is in its own table only. Tasks are shown in this order.
CHOSEN: dict[str, tuple[str, ...]] = {
    "zeroshot": (r"shape|top-1",),
    "retrieval": (r"i2t R@1\b.*",),
    "foils": (r"swap_attribute|swap.*", r"swap_relation"),
    "winoground": (r"group",),
    "captioning": (r"CIDEr-D", r"object F1"),
    "chair": (r"CHAIR-i",),
    "clipscore": (),
    "memorisation": (),
    "vqa": (r"accuracy",),
    "fewshot_vqa": (),
    "pope": (r"accuracy \(adversarial\)", r"accuracy \(all\)"),
    "binding": (r"shape, k = 3|k = 3",),
    "probe": (),
    "bias": (),
    "drawing": (r"colour\+shape",),
    "drawing_scores": (),
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
            shown += [key for key in there if re.fullmatch(pattern, key.metric)][:1]
    return list(dict.fromkeys(shown))
