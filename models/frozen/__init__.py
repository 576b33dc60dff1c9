from models.frozen.model import Frozen, FrozenConfig

__all__ = ["Frozen", "FrozenConfig"]
