"""The attacks, and the share of the time that each has. What one of them leaves goes to the next."""

from __future__ import annotations

from tests.stress.disks import full_and_read_only_disks, limited_files
from tests.stress.kills import killed_comparisons, killed_evaluations, killed_trainings
from tests.stress.mutations import mutated_models, mutated_results, mutated_tars
from tests.stress.together import two_at_once
from tests.stress.values import odd_values

ATTACKS = {  # the first two come to an end of their own, on two idle cores within their share of ten minutes
    killed_trainings: 42,
    killed_comparisons: 13,
    killed_evaluations: 6,
    full_and_read_only_disks: 10,
    limited_files: 7,
    two_at_once: 8,
    mutated_results: 5,
    mutated_models: 5,
    mutated_tars: 4,
    odd_values: 5,
}
