"""The adapter of models that reply in a conversation."""

from __future__ import annotations

from eval.base.capabilities import Images, Replies, Said, Texts


class GeneratedReplies:
    adapter = "generated reply"

    def __init__(self, model: Replies, batch_size: int = 256) -> None:
        self.model, self.batch_size = model, batch_size

    def prepare(self, images: Images, texts: Texts = ()) -> None:
        """Does nothing: replies are generated when they are needed."""

    def replies(self, images: Images, requests: Texts) -> list[Said]:
        """Raises ValueError if the model returns another number of replies."""
        found: list[Said] = []
        for start in range(0, len(requests), self.batch_size):
            rows = slice(start, start + self.batch_size)
            some = list(self.model.reply(images[rows], requests[rows]))
            if len(some) != len(requests[rows]):
                raise ValueError(f"reply returned {len(some)} replies to {len(requests[rows])} requests")
            found += [Said(str(text), bool(ended)) for text, ended in some]
        return found
