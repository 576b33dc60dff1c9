"""What an image tokenizer keeps, counted by hand."""

from __future__ import annotations

from types import SimpleNamespace

from data.sample import Object, Sample
from recipes.claims.measures.vq import kept
from tests.eval import fakes


def test_each_attribute_counts_by_itself_and_nothing_recognised_is_wrong() -> None:
    star = Object("star", (0, 0, 4, 4), {"colour": "red", "size": "large", "fill": "solid"})
    heart = Object("heart", (0, 0, 4, 4), {"colour": "red", "size": "large", "fill": "hollow"})
    samples = [Sample(str(i), fakes.picture(i), objects=(star,)) for i in range(4)]
    tokenizer = SimpleNamespace(tokens=lambda images: images, paint=lambda tokens: tokens)
    recogniser = SimpleNamespace(recognise=lambda pictures: [([star], {}), ([heart], {}), ([], {}), ([star], {})])
    assert kept(tokenizer, recogniser, samples) == {"shape": 0.5, "colour": 0.75, "size": 0.75, "fill": 0.5}
