from models.siglip.model import SigLIP, SigLIPConfig

__all__ = ["SigLIP", "SigLIPConfig"]
