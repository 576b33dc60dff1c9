"""CM3leon's configuration, and its presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from models.clip import CLIPConfig
from models.cm3leon.collate import Mix
from models.cm3leon.decoder import DecoderConfig
from models.cm3leon.objective import Weights
from models.vq import VQConfig

MARKS = 2 * 16  # most <mask> and <infill> that a document's spans add to it


@dataclass(frozen=True)
class CM3leonConfig:
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    image_tokenizer: VQConfig = field(default_factory=VQConfig)
    retriever: CLIPConfig = field(default_factory=CLIPConfig)
    vocab_size: int = 56_320  # of text; a training takes its tokenizer's
    text: int = 256  # longest text of a document, in tokens
    framed: bool = False  # positions by `Frame`; else consecutive, as OPT's
    documents: int = 2  # at most, before a query
    memory: int = 0  # documents held to retrieve from
    skip_above: float = 0.9  # similarity; section 2.1
    mix: Mix = field(default_factory=Mix)
    weights: Weights = field(default_factory=Weights)
    z_loss: float = 0.0  # Chameleon: 1e-5
    guidance: float = 3.0  # section 3.1; 1 is none
    temperature: float = 1.0
    top_p: float = 0.9
    samples: int = 8  # drawn for each text; the retriever chooses one of them

    @classmethod
    def tiny(cls) -> CM3leonConfig:
        """2.2 M parameters in the decoder, 8 x 8 image tokens a picture."""
        return cls(
            decoder=DecoderConfig(width=192, depth=4, heads=3, hidden=768, positions=512),
            image_tokenizer=VQConfig.tiny(),
            retriever=CLIPConfig.tiny(),
            text=32,
            framed=True,
            memory=20_000,
            mix=Mix(spans=0.05, drawn=0.6, alone=0.8, aligned=True, easier_captions=0.5, first_caption=0.6, documents=(1.0,)),
            weights=Weights(prompt=0.25, written=4.0, drawn=1.0, unconditional=0.3, objects=5.0),
            guidance=2.0,
            top_p=1.0,
        )

    @classmethod
    def small(cls) -> CM3leonConfig:
        """The paper's at a tenth of its smallest model (41 M in the decoder), for 128 px pictures of 16 x 16 tokens and one GPU."""
        return cls(
            decoder=DecoderConfig(width=512, depth=12, heads=8, hidden=2048, positions=1024),
            image_tokenizer=VQConfig.small(),
            retriever=CLIPConfig.small(),
            text=64,
            memory=100_000,
            mix=Mix(spans=0.5, documents=(0.5, 0.25, 0.25)),
        )

    @classmethod
    def paper(cls) -> CM3leonConfig:
        """7 B: table 3 of the paper, 32 x 4096. Two of its three retrieved documents fit with a query into 4,096 positions."""
        return cls(memory=1_000_000, mix=Mix(documents=(0.0, 0.0, 1.0)))

    @classmethod
    def m350(cls) -> CM3leonConfig:
        return replace(cls.paper(), decoder=DecoderConfig(width=1024, depth=24, heads=16, hidden=4096))

    @classmethod
    def m760(cls) -> CM3leonConfig:
        return replace(cls.paper(), decoder=DecoderConfig(width=1536, depth=24, heads=24, hidden=6144))
