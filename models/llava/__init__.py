from models.llava.model import LLaVA, LLaVAConfig
from models.llava.qwenvl import QwenVL, QwenVLConfig

__all__ = ["LLaVA", "LLaVAConfig", "QwenVL", "QwenVLConfig"]
