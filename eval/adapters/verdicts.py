"""Yes-or-no decisions for all kinds of models: whether something is in an image. Implements `eval.base.capabilities.Decider`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.base.answers import yes_or_no
from eval.base.capabilities import Answerer, AnswerScorer, Examples, Images, Scorer, Texts, Verdict


class LikelierVerdicts:
    """The more likely of "yes" and "no"; neither for a tie. The margin is the difference in nats."""

    def __init__(self, scorer: AnswerScorer) -> None:
        self.scorer, self.adapter = scorer, f"yes or no by {scorer.adapter}"

    def prepare(self, images: Images, texts: Texts) -> None:
        self.scorer.prepare(images, ())

    def verdicts(self, images: Images, questions: Texts, statements: Texts, examples: Examples) -> list[Verdict]:
        # Both answers to a question side by side: many models read picture and question once then.
        twice = [row for row in range(len(questions)) for _ in range(2)]
        found = self.scorer.likelihoods([images[row] for row in twice], [questions[row] for row in twice], ["yes", "no"] * len(questions))
        yes, no = found[0::2], found[1::2]
        return [Verdict(margin > 0 if margin else None, margin) for margin in (yes - no).tolist()]


class SpokenVerdicts:
    """The verdict of the model's generated answer, by `yes_or_no` (eval/base/yesno.py). No margin."""

    def __init__(self, answerer: Answerer) -> None:
        self.answerer, self.adapter = answerer, f"yes or no in a {answerer.adapter}"

    def prepare(self, images: Images, texts: Texts) -> None:
        self.answerer.prepare(images, ())

    def verdicts(self, images: Images, questions: Texts, statements: Texts, examples: Examples) -> list[Verdict]:
        said = self.answerer.answers(images, questions, [("yes", "no")] * len(questions))
        return [Verdict(yes_or_no(answer, question), None, answer) for answer, question in zip(said, questions, strict=True)]


class ThresholdVerdicts:
    """Yes if the score of the statement exceeds a threshold that is chosen on the examples. The margin is the difference."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.adapter = scorer, f"threshold on {scorer.adapter}"
        self._thresholds: dict[int, tuple[Examples, float]] = {}  # id -> (examples, threshold): holding them keeps the id unique

    def prepare(self, images: Images, texts: Texts) -> None:
        self.scorer.prepare(images, texts)

    def verdicts(self, images: Images, questions: Texts, statements: Texts, examples: Examples) -> list[Verdict]:
        margins = self.scorer.pairs(images, statements).astype(np.float64) - self._threshold(examples)
        return [Verdict(margin > 0, margin) for margin in margins.tolist()]

    def _threshold(self, examples: Examples) -> float:
        if id(examples) not in self._thresholds:
            pairs = [(id(image), statement) for image, statement, _ in examples]
            distinct = dict(zip(pairs, examples, strict=True))  # an example that counts for several kinds is scored only once
            found = self.scorer.pairs([image for image, _, _ in distinct.values()], [statement for _, statement, _ in distinct.values()])
            known = dict(zip(distinct, found.tolist(), strict=True))
            scores = np.array([known[pair] for pair in pairs])
            self._thresholds[id(examples)] = (examples, threshold(scores, [truth for _, _, truth in examples]))
        return self._thresholds[id(examples)][1]


def threshold(scores: np.ndarray, truths: Sequence[bool | None]) -> float:
    """The threshold with the best accuracy; the middle one of equally good ones.

    Where a truth is unknown: the median, since the answer to half of POPE's questions is yes.
    """
    if any(truth is None for truth in truths):
        return float(np.median(scores))
    values, place = np.unique(scores, return_inverse=True)
    truth = np.array(truths, bool)
    yes = np.bincount(place, truth, len(values))  # how many true statements have each score
    no = np.bincount(place, ~truth, len(values))
    cuts = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1]])
    right = np.concatenate([[0], np.cumsum(no - yes)])  # relative to yes for all
    best = np.flatnonzero(right == right.max())
    return float(cuts[best[len(best) // 2]])
