from models.clip.locked import LockedCLIP, LockedCLIPConfig
from models.clip.model import CLIP, CLIPConfig

__all__ = ["CLIP", "CLIPConfig", "LockedCLIP", "LockedCLIPConfig"]
