from models.llava.model import LLaVA, LLaVAConfig

__all__ = ["LLaVA", "LLaVAConfig"]
