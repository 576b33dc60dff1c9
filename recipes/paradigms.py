"""Claims across paradigms: other models, the same data, the same questions. `make claims-paradigms`.

Nothing is trained here that `make train-<model>` does not train.
"""

from __future__ import annotations

from recipes.claims.claim import Arm, Cell, Claim

SWAPPED = Cell("foils", "swap_attribute")

CLAIMS = (
    Claim(
        name="bags-of-words",
        sentence="Dual encoders read a caption as a bag of words and miss that attributes were swapped; a captioner's likelihood does not.",
        paper="arXiv 2210.01936: CLIP little above chance on attributes, at chance on word order; 2306.07915: captioners far ahead of it",
        arms=(
            Arm("CoCa, likelihood", page="coca"),
            Arm("CoCa, embeddings", page="coca", metric=Cell("foils", "swap_attribute", variant="by embedding similarity")),
            Arm("CLIP", page="clip"),
            Arm("SigLIP", page="siglip"),
        ),
        metric=SWAPPED,
        note="the words are the same in both captions, chance is .500; arms two and one are one model, asked in two ways",
    ),
)
