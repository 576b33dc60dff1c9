from models.coca.model import CoCa, CoCaConfig

__all__ = ["CoCa", "CoCaConfig"]
