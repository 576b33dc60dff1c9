"""Select the headline metrics of each task."""

from __future__ import annotations

import re

from eval.report.results import Key
from eval.tasks import headlines


def headline(keys: list[Key]) -> list[Key]:
    """The headline metrics among `keys`, in the order of the tasks, each on the task's first split."""
    shown: list[Key] = []
    for task in dict.fromkeys(key.task for key in keys):
        of_task = [key for key in keys if key.task == task]
        there = [key for key in of_task if key.split == of_task[0].split]
        patterns = headlines().get(task)
        if patterns is None:
            shown.append(there[0])
        for pattern in patterns or ():
            shown += [key for key in there if re.fullmatch(pattern, key.metric)][:1]
    return list(dict.fromkeys(shown))
