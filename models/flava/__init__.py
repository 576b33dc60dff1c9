from models.flava.model import FLAVA, FLAVAConfig

__all__ = ["FLAVA", "FLAVAConfig"]
