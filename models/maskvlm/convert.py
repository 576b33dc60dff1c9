"""RoBERTa's weights in MaskVLM's text encoder, which has its layers.

RoBERTa counts positions from the one after padding's, and adds one segment's vector to all of them: both are part of `positions` here.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoModel

from models.maskvlm.blocks import TextEncoder
from models.shared.convert import Row, State, to_ours
from models.shared.sources import fetched
from models.shared.text import Tokenizer, named_tokenizer

PROBE = "A photo of 3 large, blue stars."
LAYER = "encoder.layer.*"
TABLE = (
    Row("tokens.weight", "embeddings.word_embeddings.weight"),
    Row("positions", "embeddings.position_embeddings.weight"),
    Row("norm.*", "embeddings.LayerNorm.*"),
    Row("blocks.*.attn.qkv.*", tuple(f"{LAYER}.attention.self.{name}.*" for name in ("query", "key", "value"))),
    Row("blocks.*.attn.proj.*", f"{LAYER}.attention.output.dense.*"),
    Row("blocks.*.norm1.*", f"{LAYER}.attention.output.LayerNorm.*"),
    Row("blocks.*.fc1.*", f"{LAYER}.intermediate.dense.*"),
    Row("blocks.*.fc2.*", f"{LAYER}.output.dense.*"),
    Row("blocks.*.norm3.*", f"{LAYER}.output.LayerNorm.*"),
)


def from_roberta(state: State, *, pad: int, context: int) -> State:
    """transformers' `RobertaModel`, for texts of up to `context` tokens. Its pooler has no counterpart."""
    state = {name: value for name, value in state.items() if not name.startswith("pooler.") and not name.endswith("position_ids")}
    segment = state.pop("embeddings.token_type_embeddings.weight")[0]
    ours = to_ours(state, TABLE)
    return ours | {"positions": ours["positions"][pad + 1 : pad + 1 + context] + segment}


def fetch_roberta(text: TextEncoder, source: str, tokenizer: Tokenizer) -> dict[str, str]:
    """Load a RoBERTa of the hub, or of a folder like one, into `text`, which has its shape; nothing for the name "".

    Returns its part of what a model's `fetch` returns: {"text": source}, or {}. Raises ConnectionError where the hub is out of reach,
    ValueError where texts are read with another tokenizer than its own, or the shapes differ.
    """
    if not source:
        return {}
    theirs: Any = fetched(
        f"text encoder {source!r}",
        AutoModel.from_pretrained,
        source,
        use_safetensors=True,
        trust_remote_code=False,
        attn_implementation="eager",
    )
    own = named_tokenizer(source)
    if theirs.config.model_type != "roberta":
        raise ValueError(f"text encoder {source!r} is a {theirs.config.model_type!r}, expected a 'roberta'")
    if own.encode(PROBE) != tokenizer.encode(PROBE) or (own.start, own.end) != (tokenizer.start, tokenizer.end):
        raise ValueError(f"text encoder {source!r} does not know the tokens of tokenizer {tokenizer.name!r}: add --tokenizer {source}")
    state = from_roberta(theirs.state_dict(), pad=theirs.config.pad_token_id, context=len(text.positions))
    try:
        text.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"text encoder {source!r} has another shape than this one: set --model.text to its own ({error})") from error
    return {"text": source}
