from models.siglip.llip import Llip, LlipConfig
from models.siglip.model import SigLIP, SigLIPConfig

__all__ = ["Llip", "LlipConfig", "SigLIP", "SigLIPConfig"]
