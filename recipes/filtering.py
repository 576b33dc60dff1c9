"""What a filter is worth: DataComp's question (arXiv 2304.14108), with CLIP on a polluted pool.

make filter-curve DATA=pool                   writes the lists that the arms train on (recipes/filter/curve.py), and tests these claims

Model, budget and test set are the same in every arm; only the training samples differ. The budget counts samples seen, as in the paper:
what is left of a pool is repeated. DataComp keeps pool size and samples seen equal (12.8 M to 12.8 G); here a pool of 20 k is seen 2.4
times.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data.keep import read_header
from recipes.claims.claim import Arm, Cell, Change, Claim, ClaimError, Measured
from recipes.train.recipe import AnyRecipe

RECALL = Cell("retrieval", "i2t R@1 (500)")
NOTE = "CLIP, tiny, 48 k samples; the score is that of the arm without a filter, seed 0; lists: make filter-curve DATA=pool"


def short(recipe: AnyRecipe) -> AnyRecipe:
    """A quarter of the samples."""
    return replace(recipe, budget=recipe.budget // 4)


def kept(name: str) -> Change:
    """Train on the list of this name, which is beside the data."""
    return lambda recipe: replace(recipe, keep=str(Path(recipe.data) / "curve" / f"{name}.jsonl"))


def precision(folder: Path, recipe: AnyRecipe) -> float:
    """The share of clean samples in the list that a run was trained on."""
    truth = read_header(Path(recipe.keep)).get("truth")
    if truth is None:
        raise ClaimError(f"{recipe.keep}: the truth about its samples is not known. Expected a pool, as DATA=pool")
    return float(truth["precision"])


EVERYTHING = Arm("all samples", page="clip")
TENTH = Arm("best 10 % by CLIP score", kept("clip-0.1"), page="clip")
THIRD = Arm("best 30 % by CLIP score", kept("clip-0.3"), page="clip")
HALF = Arm("best 50 % by CLIP score", kept("clip-0.5"), page="clip")
RANDOM = Arm("30 % at random", kept("random-0.3"), page="clip")
RULES = Arm("rules", kept("rules"), page="clip")
BOTH = Arm("rules and best 50 % by CLIP score", kept("rules-clip-0.5"), page="clip")
CLEAN = Arm("the clean samples", kept("truth"), page="clip")

CLAIMS = (
    Claim(
        name="clip-score",
        sentence="At equal samples seen, training on the best by CLIP score beats training on everything, and on as many at random.",
        paper="xlarge scale, ImageNet zero-shot: best 30 % by CLIP L/14 0.655, no filter 0.612 (from a third-party table)",
        base=short,
        arms=(THIRD, EVERYTHING, RANDOM),
        metric=RECALL,
        note=NOTE,
    ),
    Claim(
        name="kept-share",
        sentence="There is a best share to keep: fewer samples repeat too often, and more bring noise.",
        paper="figure on the fraction kept: about 30 % is best by CLIP score (recalled)",
        base=short,
        arms=(THIRD, TENTH, HALF, EVERYTHING),
        metric=RECALL,
        note=NOTE,
    ),
    Claim(
        name="intersection",
        sentence="A filter of pictures and captions by rules and one by CLIP score are better together than alone.",
        paper="xlarge scale, ImageNet zero-shot: image-based and CLIP score 30 % 0.679, CLIP score 30 % 0.655 (from a third-party table)",
        base=short,
        arms=(BOTH, HALF, RULES),
        metric=RECALL,
        note=f"rules: length, boilerplate, blur and duplicates; {NOTE}",
    ),
    Claim(
        name="truth",
        sentence="The filters leave something to gain: training on the clean samples is better still.",
        paper="none: there the truth is not known",
        base=short,
        arms=(CLEAN, BOTH, THIRD),
        metric=RECALL,
        note=NOTE,
    ),
    Claim(
        name="precision",
        sentence="Of what rules and CLIP score keep together, more is clean than of what either keeps, or chance.",
        paper="none: there the truth is not known",
        base=short,
        arms=(BOTH, THIRD, RULES, RANDOM),
        metric=Measured("share of clean samples among the kept", precision),
        note=NOTE,
    ),
)
