"""The anchors: image-text pairs, as vectors of two separately trained encoders. They are all that ASIF stores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NOTHING = -1  # padding


class Anchors(nn.Module):
    """n pairs as rows, in the order in which they were added; part of the model's state dict, so that a run folder is complete."""

    image: Tensor
    text: Tensor
    ids: Tensor
    pictures: Tensor

    def __init__(self, image: int, text: int, *, context: int, side: int) -> None:
        """Widths of the vectors, tokens per text, and side of the thumbnails in pixels (0: none)."""
        super().__init__()
        self.register_buffer("image", torch.zeros(0, image))  # of unit length
        self.register_buffer("text", torch.zeros(0, text))
        self.register_buffer("ids", torch.zeros(0, context, dtype=torch.int32))  # token ids of the text, padded with NOTHING
        self.register_buffer("pictures", torch.zeros(0, 3, side, side, dtype=torch.uint8))

    def __len__(self) -> int:
        return len(self.image)

    def add(self, image: Tensor, text: Tensor, ids: Tensor, pictures: Tensor) -> None:
        """`[m, D]`, `[m, E]`, `[m, context]`, `[m, 3, side, side]`; a duplicated pair counts twice."""
        for name, new in (("image", image), ("text", text), ("ids", ids), ("pictures", pictures)):
            held = getattr(self, name)
            setattr(self, name, torch.cat([held, new.to(held.device, held.dtype)]))

    def delete(self, rows: Tensor) -> None:
        """Delete rows, exactly as if they had never been added; later rows move up. Raises IndexError for a row that does not exist."""
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"anchors are rows 0 to {len(self) - 1}, and {int(rows.min())} to {int(rows.max())} were to be deleted")
        kept = torch.ones(len(self), dtype=torch.bool, device=self.image.device)
        kept[rows.to(kept.device)] = False
        for name, held in list(self.named_buffers()):
            setattr(self, name, held[kept])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """The number of anchors comes from the run folder."""
        for name, held in list(self.named_buffers()):
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.shape[1:] == held.shape[1:]:
                setattr(self, name, held.new_zeros(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)
