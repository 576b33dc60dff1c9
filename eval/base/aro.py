"""ARO's published measures (Yuksekgonul et al. 2023, arXiv:2210.01936), from the authors' code
(github.com/mertyg/vision-language-models-are-bows): dataset_zoo/aro_datasets.py and the notebook on VG-Relation and VG-Attribution.

VG-Relation         accuracy of each relation, averaged over the relations (macro average). The notebook leaves out those in `SYMMETRIC`:
                    relations that hold both ways, and many that are rare.
VG-Attribution      accuracy of each pair of attributes, averaged over the pairs that have at least 25 cases.
COCO- and Flickr30k-Order   Precision@1: how often the caption scores above all of its four shuffles.

Chance is 1/2, 1/2 and 1/5. The authors' argmax gives a tie to the first text: the foil in the first two, the caption in the third. Here
tied texts are in random order, as in every task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from data.sample import Sample

RELATION, ATTRIBUTION, ORDER = "relation", "attribution", "order"  # the kinds of foils that data/importers/aro.py writes
FEWEST_CASES = 25  # of a pair of attributes

LEFT_OUT = (
    "adjusting, around, attached to, beside, between, bigger than, biting, boarding, brushing, by, chewing, cleaning, climbing, close "
    "to, coming from, coming out of, contain, crossing, dragging, draped over, drinking, drinking from, driving, driving down, driving "
    "on, eating from, eating in, enclosing, exiting, facing, filled with, floating in, floating on, flying, flying above, flying in, "
    "flying over, flying through, full of, going down, going into, going through, grazing in, growing in, growing on, guiding, hanging "
    "from, hanging in, hanging off, hanging over, higher than, holding onto, hugging, in between, jumping off, jumping on, jumping "
    "over, kept in, larger than, leading, leaning over, leaving, licking, longer than, looking in, looking into, looking out, looking "
    "over, looking through, lying next to, lying on top of, making, mixed with, mounted on, moving, near, next to, of, on the back of, "
    "on the edge of, on the front of, on the other side of, on the side of, opening, painted on, parked at, parked beside, parked by, "
    "parked in, parked in front of, parked near, parked next to, perched on, petting, piled on, playing, playing in, playing on, "
    "playing with, pouring, reaching for, reading, reflected on, riding on, running in, running on, running through, seen through, "
    "sitting behind, sitting beside, sitting by, sitting in front of, sitting near, sitting next to, sitting under, skiing down, skiing "
    "on, sleeping in, sleeping on, smiling at, sniffing, splashing, sprinkled on, stacked on, standing against, standing around, "
    "standing behind, standing beside, standing in front of, standing near, standing next to, staring at, stuck in, surrounding, "
    "swimming in, swinging, talking to, topped with, touching, traveling down, traveling on, tying, typing on, underneath, wading in, "
    "waiting for, walking across, walking by, walking down, walking next to, walking through, with, working in, working on, worn on, "
    "wrapped around, wrapped in"
)
SYMMETRIC = frozenset(LEFT_OUT.split(", "))


def macro_weights(samples: Sequence[Sample], kind: str) -> dict[str, float]:
    """1 / number of cases for each relation (pair of attributes) that counts: a mean over cases with these weights is the mean over
    relations of their accuracies. Empty without any."""
    counts = Counter(group for sample in samples for foil in sample.foils if foil.kind == kind and (group := group_of(sample, kind)))
    fewest = FEWEST_CASES if kind == ATTRIBUTION else 1
    return {group: 1 / count for group, count in counts.items() if count >= fewest and group not in SYMMETRIC}


def group_of(sample: Sample, kind: str) -> str:
    """The relation, or the pair of attributes; "" where the data do not say."""
    if kind == RELATION:
        return str(sample.extra.get("relation_name", ""))
    attributes = sample.extra.get("attributes")
    return "_".join(map(str, attributes[:2])) if isinstance(attributes, list | tuple) and len(attributes) >= 2 else ""
