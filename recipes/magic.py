"""MAGIC (arXiv 2205.02655).

make train-magic                              2 CPU cores; trains only its CLIP (make train-clip) and its language model
make tune-magic                               tunes alpha and beta on the val split
make train-magic PRESET=small                 one CUDA GPU
make train-magic PRESET=real DATA=SHARDS      2 CPU cores, photos: LiT on two published encoders (make train-lit PRESET=real), and SmolLM2
                                              adapted on the captions of SHARDS
make train-magic PRESET=paper DATA=SHARDS     trains GPT-2 on the captions of SHARDS; CLIP is fetched from the hub

           paper (sections 3.1 and 4.1)                    small                   tiny
CLIP       ViT-B/32                                        the suite's, small      the suite's, tiny
language   GPT-2, 124 M, adapted on captions of the        25 M, captions of       1.9 M, captions of
           training set: likelihood and SimCTG, margin .5  scenes-small            scenes-tiny, 40 k read
search     COCO k 45, alpha .1, beta 2, 16 tokens*         k 20, alpha .1, beta .6 (make tune-magic)
           Flickr30k k 25, alpha .1, beta 2, 20 tokens*
trained    nothing

*The start token is one of them.
"""

from __future__ import annotations

from models.magic import LockedMAGICConfig, MAGICConfig
from recipes.claims.claim import Arm, Claim
from recipes.claims.measures.magic import captioned
from recipes.train.recipe import Prerequisite, Recipe

PRESETS = {
    "tiny": Recipe(
        model=MAGICConfig.tiny(),
        budget=1,  # nothing is trained
        batch=1,
        prerequisites=(Prerequisite("clip", "clip"), Prerequisite("language_model", "lm", "captions")),
        tokenizer="language_model",
    ),
    "small": Recipe(
        model=MAGICConfig.small(),
        budget=1,
        batch=1,
        prerequisites=(Prerequisite("clip", "clip"), Prerequisite("language_model", "lm", "captions-small")),
        tokenizer="language_model",
        data=".data/scenes-small",
    ),
    "real": Recipe(
        model=LockedMAGICConfig.real(),
        budget=1,
        batch=1,
        prerequisites=(Prerequisite("clip", "lit"), Prerequisite("language_model", "lm", "captions-real")),
        tokenizer="language_model",
        data=".data/openmoji",
    ),
    "paper": Recipe(
        model=MAGICConfig.paper(),
        budget=1,
        batch=1,
        prerequisites=(Prerequisite("language_model", "lm", "captions-paper"),),
        tokenizer="language_model",
    ),
}

OBJECTS = captioned("object F1")

CLAIMS = (
    Claim(
        name="the-magic-score-sees",
        sentence="The magic score makes captions describe the image; too high a weight makes them worse.",
        paper="table 1: CIDEr on COCO 49.3, above all decoding methods for the same language model without CLIP; section 4.1: beta 2",
        arms=(
            Arm("beta as tuned"),
            Arm("beta 0: contrastive search", metric=captioned("object F1", beta=0.0)),
            Arm("beta 0.1", metric=captioned("object F1", beta=0.1)),
            Arm("beta 2", metric=captioned("object F1", beta=2.0)),
            Arm("beta 8", metric=captioned("object F1", beta=8.0)),
        ),
        metric=OBJECTS,
        note="F1 of the objects that captions mention, instead of CIDEr",
    ),
    Claim(
        name="softmax-over-candidates",
        sentence="CLIP's softmax over the candidates is a better score than its cosine, which hardly differs between candidates.",
        paper="section 3.2 defines the magic score by the softmax, without a comparison",
        arms=(
            Arm("softmax"),
            Arm("cosine, the same beta", metric=captioned("object F1", score="cosine")),
            Arm("cosine, beta 2", metric=captioned("object F1", score="cosine", beta=2.0)),
            Arm("cosine, beta 8", metric=captioned("object F1", score="cosine", beta=8.0)),
        ),
        metric=OBJECTS,
    ),
    Claim(
        name="true-against-shuffled-pictures",
        sentence="Captions depend on the image: captions of other images do not fit it.",
        paper="the paper shows captions and stories for different images; the comparison is ours",
        arms=(Arm("own pictures"), Arm("shuffled pictures", metric=captioned("object F1", shuffled=True))),
        metric=OBJECTS,
    ),
    Claim(
        name="the-penalty-prevents-repetition",
        sentence="The degeneration penalty prevents repetition in captions.",
        paper="SimCTG (2202.06417): contrastive search is about as rarely repetitive as human text, greedy search is mostly repetitive",
        arms=(
            Arm("alpha 0.6", metric=captioned("repeated words", alpha=0.6)),
            Arm("alpha 0", metric=captioned("repeated words", alpha=0.0)),
        ),
        metric=captioned("repeated words"),
        better="lower",
        note="share of words that occur earlier in the same caption; captions of a dozen words leave little room for repetition",
    ),
)
