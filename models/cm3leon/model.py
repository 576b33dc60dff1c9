"""CM3leon: everything is tokens; one decoder reads and generates text and images, with retrieved documents in its context
(Yu et al., 2023, arXiv 2309.02591; objective CM3, 2201.07520; retrieval RA-CM3, 2211.12561).

Pictures become tokens by a frozen VQ, documents are found by a frozen CLIP. Deviations of `tiny`, all in the configuration:
positions are framed (see `Frame`) and image tokens start where their codes lie, which a small decoder would take long to find
out; CM3's random spans are mostly replaced by its two extremes, nothing and the whole text, and tokens of objects and of what is asked
for weigh more; drawn pictures of one object are shifted onto the grid of cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.sample import Object, Sample
from models.clip import CLIP
from models.cm3leon.collate import DocumentCollate, TaskCollate, covered
from models.cm3leon.config import MARKS, CM3leonConfig
from models.cm3leon.decoder import TokenDecoder
from models.cm3leon.drawing import UNGUIDED, Painter, Reader, Sampling, Writer, padded_in_front
from models.cm3leon.objective import cm3_loss, token_losses
from models.cm3leon.retrieval import Memory, key_of, texts_of, without_gaps
from models.cm3leon.sequence import Builder, Frame, Kind, Token, Vocabulary, stack
from models.contract import IGNORE_INDEX, Losses, Model
from models.shared import device
from models.shared.generate import GREEDY, Decoding, generate, not_text
from models.shared.images import ImageTransform
from models.shared.text import LONGEST, Tokenizer
from models.shared.tree import forests
from models.vq import VQ


class CM3leon(Model):
    paradigm = "generative"
    Config = CM3leonConfig
    builds_on = ("clip", "vq")
    score_kind = "likelihood"

    def __init__(self, config: CM3leonConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.image_tokenizer = VQ(config.image_tokenizer, tokenizer).requires_grad_(False)
        self.retriever = CLIP(config.retriever, tokenizer).requires_grad_(False)
        self.vocabulary = Vocabulary(config.vocab_size, self.image_tokenizer.size)
        self.cells = self.image_tokenizer.side**2
        self.frame = Frame(config.text, self.cells)
        self._check_positions()
        self.builder = Builder(
            self.vocabulary, self.frame, start=tokenizer.end if tokenizer.start is None else tokenizer.start, end=tokenizer.end
        )
        self.decoder = TokenDecoder(config.decoder, self.vocabulary.size)
        self.memory = Memory(config.memory, config.retriever.embed_dim, text=config.text, cells=self.cells)
        self.enter_stage("pretraining")

    def _check_positions(self) -> None:
        config, frame = self.config, self.frame
        document = frame.text + frame.cells + 3
        longest = (config.documents + 1) * frame.length if config.framed else max(frame.length, (config.documents + 1) * document + MARKS)
        if longest > config.decoder.positions and not config.decoder.chameleon:
            raise ValueError(
                f"{config.documents} retrieved documents and a query take up to {longest} positions, and the decoder has "
                f"{config.decoder.positions}: raise decoder.positions, or lower documents or text"
            )

    # ------------------------------------------------------------------------------------------- prerequisites

    def adopt(self, modules: Mapping[str, Any]) -> None:
        """Take over a trained VQ ("image_tokenizer") and a trained CLIP ("retriever"), frozen from here on."""
        tokenizer, retriever = modules["image_tokenizer"], modules["retriever"]
        assert isinstance(tokenizer, VQ)
        assert isinstance(retriever, CLIP)
        wanted = replace(tokenizer.config, perceptual="", adversarial_weight=0.0)  # what only its training needed
        if (tokenizer.size, tokenizer.side**2) != (self.vocabulary.images, self.cells):
            raise ValueError(
                f"the image tokenizer has {tokenizer.size} codes and {tokenizer.side**2} cells per image, the recipe expects "
                f"{self.vocabulary.images} and {self.cells}: train it with the same --model.image-tokenizer"
            )
        if retriever.config.vocab_size != self.config.vocab_size or retriever.config.embed_dim != self.memory.vectors.shape[1]:
            raise ValueError(
                f"the retriever reads {retriever.config.vocab_size} tokens into {retriever.config.embed_dim} dimensions, the recipe "
                f"expects {self.config.vocab_size} and {self.memory.vectors.shape[1]}: give it the retriever's tokenizer (--tokenizer "
                "retriever) and sizes (--model.retriever)"
            )
        self.config = replace(self.config, image_tokenizer=wanted, retriever=retriever.config)
        self.image_tokenizer = VQ(wanted, self.tokenizer)
        own = self.image_tokenizer.state_dict().keys()
        self.image_tokenizer.load_state_dict({name: value for name, value in tokenizer.state_dict().items() if name in own})
        self.retriever = CLIP(retriever.config, self.tokenizer)
        self.retriever.load_state_dict(retriever.state_dict())
        for module in (self.image_tokenizer, self.retriever):
            module.requires_grad_(False).eval()
        self._place_image_tokens()

    @torch.no_grad()
    def _place_image_tokens(self) -> None:
        """Initialise the embeddings of image tokens by a random projection of their code vectors, so that similar codes start similar."""
        vectors = self.image_tokenizer.quantiser.lookup(torch.arange(self.vocabulary.images)).float()
        projected = F.normalize(vectors - vectors.mean(dim=0), dim=0) @ torch.randn(vectors.shape[1], self.config.decoder.width)
        rows = self.decoder.tokens.weight[self.vocabulary.image]
        rows += projected / projected.std() * rows.std()

    @torch.no_grad()
    def remember(self, batches: Iterable[Sequence[Sample]]) -> None:
        """Fill the memory with the documents to retrieve from; stops when it is full."""
        for samples in batches:
            if int(self.memory.filled) == self.config.memory:
                return
            captioned = [sample for sample in samples if sample.captions]
            if captioned:
                texts = [sample.captions[0] for sample in captioned]
                images = [sample.image for sample in captioned]
                vectors = self.retriever.encode_image(images) + self.retriever.encode_text(texts)
                keys = torch.tensor([key_of(sample) for sample in captioned])
                self.memory.add(F.normalize(vectors, dim=-1), self._texts(texts), self.image_tokenizer.tokens(images), keys)

    # ------------------------------------------------------------------------------------------------- training

    def enter_stage(self, name: str) -> None:
        """Train on documents in "pretraining" and on tasks in "tuning" (section 4). Only the decoder is trained."""
        if name not in ("pretraining", "tuning"):
            raise ValueError(f"no stage {name!r}: CM3leon has pretraining and tuning")
        size = self.config.image_tokenizer.network.image_size
        common = (ImageTransform(size), self.tokenizer, self.builder, self.image_tokenizer.side, self.config.mix)
        self.collate = DocumentCollate(*common) if name == "pretraining" else TaskCollate(*common)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums of losses of each sequence, `[B]` each; see `token_losses`."""
        ids, places, kinds = (batch[name] for name in ("ids", "places", "kinds"))
        share = torch.where(ids < 0, batch["covered"].gather(1, (-1 - ids).clamp(min=0)), 0.0)
        ids = self._fill(ids, batch["pixels"])
        documents = batch["documents"].shape[1]
        if documents:
            before = self._retrieved(batch, documents)
            ids, places, kinds = (torch.cat([x, y], dim=1) for x, y in zip(before, (ids, places, kinds), strict=True))
            share = torch.cat([share.new_zeros(before[0].shape), share], dim=1)
            ids, places, kinds, share = without_gaps(ids, places, kinds, share)
        places = self._places(places, kinds)
        weights = self.config.weights.of(kinds, share)
        states = self.decoder(ids[:, :-1], places[:, :-1])
        return token_losses(
            states,
            ids[:, 1:],
            kinds[:, 1:],
            weights[:, 1:],
            logits=self.decoder.logits,
            image_from=self.vocabulary.image.start,
            z_loss=self.config.z_loss,
        )

    def objective(self, features: dict[str, Tensor]) -> Losses:
        return cm3_loss(features, vocabulary=self.vocabulary.size)

    # -------------------------------------------------------------------------------------------- capabilities

    @torch.no_grad()
    def caption(self, images: Sequence[np.ndarray], how: Decoding = GREEDY) -> list[str]:
        """The text that fills the gap before each picture; greedy by default."""
        return self._write([self.builder.captioning()] * len(images), images, first=1, how=how)

    @torch.no_grad()
    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str], how: Decoding = GREEDY) -> list[str]:
        """What follows question and picture; also for other instructions, such as "describe this picture"."""
        return self._write([self.builder.answered(self._ids(text)) for text in questions], images, first=self.frame.answer, how=how)

    @torch.no_grad()
    def answer_likelihood(self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """log p(answer | image, question) in nats, summed over the answer's tokens and its end. `[N]`"""
        rows = [self.builder.answered(self._ids(q), self._ids(a)) for q, a in zip(questions, answers, strict=True)]
        return self.log_likelihood(rows, images)

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """log p(text | image) in nats, summed over the text's tokens and its end: a generative classifier. `[N]`"""
        ids = [self._ids(text) or [self.tokenizer.end] for text in texts]
        rows = [self.builder.document(text, [(0, len(text))], drawn=Kind.UNCONDITIONAL) for text in ids]
        return self.log_likelihood(rows, images)

    @torch.no_grad()
    def draw(
        self, texts: Sequence[str], *, seed: int = 0, samples: int | None = None, documents: int = 0, how: Sampling | None = None
    ) -> list[np.ndarray]:
        """A picture for each text, uint8 `[S, S, 3]`. An empty text is drawn freely; one longer than the context is cut.

        Of several `samples` the one whose CLIP embedding is closest to the text's is returned (section 3). `documents` from the
        memory can be put before the text.
        """
        if not texts:
            return []
        how = how or Sampling(self.config.guidance, self.config.temperature, self.config.top_p)
        rows = [self.builder.drawing(self._ids(text) or None) for text in texts]
        if documents:
            found = self.memory.search(self.retriever.encode_text(texts), documents, skip_above=self.config.skip_above)
            rows = [before + row for before, row in zip(self.before(found), rows, strict=True)]
        free = [self.builder.drawing(None)] * len(rows)
        best: list[np.ndarray] = []
        best_fit = torch.empty(0)
        wanted = self.retriever.encode_text(texts)
        for index in range(samples or self.config.samples):
            codes = self._codes(rows, free, None, first=self.frame.picture, seed=seed + 1_000_003 * index, how=how)
            pictures = self.image_tokenizer.paint(codes)
            fit = (self.retriever.encode_image(pictures) * wanted).sum(dim=1)
            if not best:
                best, best_fit = pictures, fit
            for place in (fit > best_fit).nonzero()[:, 0].tolist():
                best[place] = pictures[place]
            best_fit = torch.maximum(best_fit, fit)
        return best

    @torch.no_grad()
    def infill(
        self,
        images: Sequence[np.ndarray],
        boxes: Sequence[tuple[float, float, float, float]],
        texts: Sequence[str],
        *,
        seed: int = 0,
        how: Sampling = UNGUIDED,
    ) -> list[np.ndarray]:
        """Regenerate images inside boxes `(left, top, right, bottom)` in pixels, given the text and the surrounding image.

        The span that is cut out goes from the first cell of the box to the last; its cells outside the box keep their tokens.
        """
        if not len(images):
            return []
        inside = [self._cells_of(image, box) for image, box in zip(images, boxes, strict=True)]
        open_ = torch.from_numpy(np.stack(inside)).to(self.decoder.tokens.weight.device)
        codes = self.image_tokenizer.tokens(images)
        spans = [self.span_of(image, box) for image, box in zip(images, boxes, strict=True)]
        ids = [self._ids(text) for text in texts]
        rows, known = [], torch.full_like(codes, -1)
        for index, ((first, stop), text) in enumerate(zip(spans, ids, strict=True)):
            row = self.builder.document(text, [(len(text) + 1 + first, len(text) + 1 + stop)])
            rows.append(row[: -(stop - first) - 1])
            known[index, : stop - first] = torch.where(open_[index], -1, codes[index])[first:stop]
        places = torch.tensor([self.frame.picture + first for first, _ in spans])
        drawn = self._codes(rows, None, images, first=places, seed=seed, how=how, known=known)
        for index, (first, stop) in enumerate(spans):
            codes[index, first:stop] = drawn[index, : stop - first]
        return self.image_tokenizer.paint(codes)

    def span_of(self, image: np.ndarray, box: tuple[float, float, float, float]) -> tuple[int, int]:
        """First cell of a box, and the cell after its last. Raises ValueError for a box outside of what is read of the picture."""
        inside = self._cells_of(image, box).nonzero()[0]
        if not len(inside):
            raise ValueError(f"box {box} lies outside of its picture, or of the square that is read of it")
        return int(inside[0]), int(inside[-1]) + 1

    def _cells_of(self, image: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
        sample = Sample("", image, objects=(Object("", box),))
        return covered(self.image_tokenizer.transform, [sample], self.image_tokenizer.side)[0] > 0

    @torch.no_grad()
    def edit(
        self, images: Sequence[np.ndarray], instructions: Sequence[str], *, seed: int = 0, how: Sampling = UNGUIDED
    ) -> list[np.ndarray]:
        """Edit images by instructions such as "remove the large solid red star" (section 4.1)."""
        rows = [self.builder.edited(self._ids(text), whole=False) for text in instructions]
        return self.image_tokenizer.paint(self._codes(rows, None, images, first=self.frame.answer, seed=seed, how=how)) if rows else []

    @torch.no_grad()
    def log_likelihood(self, rows: list[list[Token]], images: Sequence[np.ndarray], *, of: Kind = Kind.WRITTEN) -> Tensor:
        """log p in nats of the tokens of one kind, summed over each sequence, `[N]`. The i-th image fills the i-th sequence's cells.

        What stands before the first of these tokens is read once for all sequences that share it: one picture, many texts. So is what
        the texts begin with.
        """
        heads: dict[tuple[Any, ...], int] = {}  # -> its number
        pictures: list[np.ndarray] = []
        beginnings: list[list[Token]] = []
        tails, numbers = [], []
        for row, image in zip(rows, images, strict=True):
            begin = next((place for place, token in enumerate(row) if token.kind == of), len(row))
            number = heads.setdefault((id(image), *row[:begin]), len(heads))
            if number == len(beginnings):
                pictures.append(image)
                beginnings.append(row[:begin])
            tails.append(row[begin:])
            numbers.append(number)
        device = self.decoder.tokens.weight.device
        found = torch.zeros(len(rows), device=device)
        # A tree's root represents everything read before: its state predicts the first token.
        for forest in forests([[None, *tail[:-1]] for tail in tails], numbers):
            shown = [pictures[number] for number in forest.groups]
            reader = self._read([beginnings[number] for number in forest.groups], shown, room=forest.depths.shape[1] - 1)
            ids, places, _ = self._stacked([tokens[1:] for tokens in forest.tokens], shown)
            depths, sees = forest.depths[:, 1:].to(device), forest.sees[:, 1:, 1:].to(device)
            places = places + self._query_frame if self.config.framed else reader.places[:, None] + depths
            states = torch.cat([reader.state[:, None], reader.read_tree(ids, places, sees)], dim=1)
            following, _, kinds = self._stacked([tails[number] for number in forest.sequences], [images[n] for n in forest.sequences])
            following = following.masked_fill(kinds != of, IGNORE_INDEX)
            found[forest.sequences] = forest.log_likelihoods(self.decoder.logits(states), following)
        return found

    def before(self, rows: Tensor) -> list[list[Token]]:
        """Documents `[N, n]` of the memory, as the beginnings of sequences, of whose loss or likelihood they are no part."""
        if rows.shape[1] > self.config.documents:
            raise ValueError(f"{rows.shape[1]} documents do not fit before a query: the model was made for {self.config.documents}")
        table = torch.stack(self.memory.documents(rows, self.builder), dim=-1).tolist()  # [N, T, 3]
        return [[Token(id_, place, Kind.PROMPT) for id_, place, kind in row if kind != Kind.NOTHING] for row in table]

    # ------------------------------------------------------------------------------------------------- helpers

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text[:LONGEST])[: self.frame.text]

    def _write(self, rows: list[list[Token]], images: Sequence[np.ndarray], *, first: int, how: Decoding) -> list[str]:
        if not rows:
            return []
        reader = self._read(rows, images, room=self.frame.text)
        writer = Writer(reader, self.decoder, self.config.vocab_size, self._next(reader, first))
        ids = generate(writer, writer.logits(), end=self.tokenizer.end, limit=self.frame.text, never=not_text(self.tokenizer), how=how)
        return [self.tokenizer.decode(row) for row in ids]

    def _codes(
        self,
        rows: list[list[Token]],
        free: list[list[Token]] | None,
        images: Sequence[np.ndarray] | None,
        *,
        first: int | Tensor,
        seed: int,
        how: Sampling,
        known: Tensor | None = None,
    ) -> Tensor:
        """Draw after prompts, guided away from `free` prompts if there are any. `[N, cells]`"""
        if not rows:
            return torch.zeros(0, self.cells, dtype=torch.long)
        paired = free is not None and (how.guidance != 1 or how.contrast_k > 0)
        reader = self._read([*rows, *free] if free and paired else rows, images, room=self.cells)
        painter = Painter(reader, self.decoder, self.vocabulary.image, self._next(reader, first), how, paired=paired, known=known)
        decoding = Decoding(temperature=how.temperature, top_p=how.top_p if how.temperature else 1.0, seed=seed)
        codes = generate(painter, painter.logits(), end=-1, limit=self.cells, how=decoding)  # no code ends a picture before its last cell
        return torch.tensor(codes, device=reader.state.device)

    def _next(self, reader: Reader, first: int | Tensor) -> Tensor:
        """Places of what follows the prompts."""
        if not self.config.framed:
            return reader.places + 1
        return torch.zeros_like(reader.places) + torch.as_tensor(first, device=reader.places.device) + self._query_frame

    @property
    def _query_frame(self) -> int:
        """Where the query's frame begins: after those of retrieved documents."""
        return self.config.documents * self.frame.length

    def _read(self, rows: list[list[Token]], images: Sequence[np.ndarray] | None, *, room: int) -> Reader:
        device = self.decoder.tokens.weight.device
        ids, places, seen = (x.to(device) for x in padded_in_front(rows, pad=self.tokenizer.pad))
        if images is not None:
            ids = self._fill(ids, self.image_tokenizer.transform(images).to(device)[:, None])
        framed = places + self._query_frame
        places = framed if self.config.framed else (seen.cumsum(dim=1) - 1).clamp(min=0)
        return Reader(self.decoder, ids, places, seen, room=room)

    def _fill(self, ids: Tensor, pixels: Tensor) -> Tensor:
        """Replace placeholders (negative ids) by image tokens. ids `[B, T]`, pixels uint8 `[B, pictures, 3, S, S]`."""
        with torch.autocast(pixels.device.type, enabled=False):  # or tokens would depend on the precision of training
            codes = self.image_tokenizer.tokenise(pixels.flatten(0, 1)).view(len(ids), -1)
        tokens = self.vocabulary.image.start + codes.gather(1, (-1 - ids).clamp(min=0))
        return torch.where(ids < 0, tokens, ids)

    def _places(self, places: Tensor, kinds: Tensor) -> Tensor:
        if self.config.framed:
            return places + self._query_frame
        return torch.arange(places.shape[1], device=places.device)[None]

    def _retrieved(self, batch: dict[str, Tensor], documents: int) -> tuple[Tensor, Tensor, Tensor]:
        """Documents for each query as tokens: ids, places, kinds `[B, documents * n]`, padded wherever a text is short.

        Two are looked up by the picture and two by the caption, and of these some are sampled.
        """
        texts = texts_of(batch["query"], self.tokenizer, self.config.retriever.context)
        queries = self._looked_at(batch["pixels"][:, 0]), self.retriever._text_features(texts)
        skip = self.config.skip_above
        rows = torch.cat([self.memory.search(query, 2, skip_above=skip, own=batch["own"]) for query in queries], dim=1)  # [B, 4]
        repeated = (rows[:, :, None] == rows[:, None]).tril(-1).any(dim=2)
        luck = torch.rand(rows.shape, device=rows.device).masked_fill(repeated | (rows < 0), -1)
        return self.memory.documents(rows.gather(1, luck.topk(documents).indices), self.builder)

    def _looked_at(self, pixels: Tensor) -> Tensor:
        """The retriever's features of uint8 pixels `[B, 3, S, S]`, which are resized where they are, or by the host where it knows them."""
        if device.host_knows(pixels):
            return self.retriever.encode_image(list(pixels.permute(0, 2, 3, 1).numpy()))
        size = self.config.retriever.vision.image_size
        if size != pixels.shape[-1]:
            pixels = F.interpolate(pixels.float(), size, mode="bicubic", antialias=True).round().clamp(0, 255).to(torch.uint8)
        return self.retriever._image_features(pixels)

    def _stacked(self, rows: Sequence[Sequence[Token]], images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
        """ids, places and kinds `[N, T]`, padded at the end; the i-th image fills the i-th row's cells."""
        device = self.decoder.tokens.weight.device
        ids, places, kinds = (x.to(device) for x in stack(rows, pad=self.tokenizer.pad).values())
        if bool((ids < 0).any()):
            ids = self._fill(ids, self.image_tokenizer.transform(images).to(device)[:, None])
        return ids, places, kinds

    def _texts(self, texts: Sequence[str]) -> Tensor:
        rows = torch.full((len(texts), self.frame.text), -1)
        for row, text in zip(rows, texts, strict=True):
            ids = self._ids(text)
            row[: len(ids)] = torch.tensor(ids)
        return rows
