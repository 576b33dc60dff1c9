from models.frozen.locked import LockedFrozen, LockedFrozenConfig
from models.frozen.model import Frozen, FrozenConfig

__all__ = ["Frozen", "FrozenConfig", "LockedFrozen", "LockedFrozenConfig"]
