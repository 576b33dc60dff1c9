"""Claims across paradigms: several models on the same data and the same questions (`make claims-paradigms`).

The runs are those of `make train-<page>`.
"""

from __future__ import annotations

from recipes.claims.claim import Arm, Cell, Claim

SWAPPED = Cell("foils", "swap_attribute")

CLAIMS = (
    Claim(
        name="bags-of-words",
        sentence="Dual encoders read a caption as a bag of words and miss swapped attributes; a captioner's likelihood does not.",
        paper="arXiv 2210.01936: CLIP is little above chance on attributes, at chance on word order; 2306.07915: captioners are far ahead",
        arms=(
            Arm("CoCa, likelihood", page="coca"),
            Arm("CoCa, embeddings", page="coca", metric=Cell("foils", "swap_attribute", variant="by embedding similarity")),
            Arm("CLIP", page="clip"),
            Arm("SigLIP", page="siglip"),
        ),
        metric=SWAPPED,
        note="both captions have the same words, so chance is 1/2; the first two arms are two scores of the same model",
    ),
)
