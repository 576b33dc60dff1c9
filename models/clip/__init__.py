from models.clip.cloob import CLOOB, CLOOBConfig
from models.clip.locked import LockedCLIP, LockedCLIPConfig
from models.clip.model import CLIP, CLIPConfig

__all__ = ["CLIP", "CLOOB", "CLIPConfig", "CLOOBConfig", "LockedCLIP", "LockedCLIPConfig"]
