from models.clip.align import ALIGN, ALIGNConfig
from models.clip.cloob import CLOOB, CLOOBConfig
from models.clip.locked import LockedCLIP, LockedCLIPConfig
from models.clip.model import CLIP, CLIPConfig

__all__ = ["ALIGN", "CLIP", "CLOOB", "ALIGNConfig", "CLIPConfig", "CLOOBConfig", "LockedCLIP", "LockedCLIPConfig"]
