from models.frozen.clipcap import ClipCap, ClipCapConfig
from models.frozen.locked import LockedFrozen, LockedFrozenConfig
from models.frozen.mapl import MAPL, MAPLConfig
from models.frozen.model import Frozen, FrozenConfig

__all__ = ["MAPL", "ClipCap", "ClipCapConfig", "Frozen", "FrozenConfig", "LockedFrozen", "LockedFrozenConfig", "MAPLConfig"]
