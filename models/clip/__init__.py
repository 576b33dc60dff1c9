from models.clip.align import ALIGN, ALIGNConfig
from models.clip.cloob import CLOOB, CLOOBConfig
from models.clip.declip import DeCLIP, DeCLIPConfig
from models.clip.locked import LockedCLIP, LockedCLIPConfig
from models.clip.model import CLIP, CLIPConfig
from models.clip.rocket import CLIPRocket, CLIPRocketConfig
from models.clip.slip import SLIP, SLIPConfig

__all__ = [
    "ALIGN",
    "CLIP",
    "CLOOB",
    "SLIP",
    "ALIGNConfig",
    "CLIPConfig",
    "CLIPRocket",
    "CLIPRocketConfig",
    "CLOOBConfig",
    "DeCLIP",
    "DeCLIPConfig",
    "LockedCLIP",
    "LockedCLIPConfig",
    "SLIPConfig",
]
