from models.maskvlm.model import MaskVLM, MaskVLMConfig

__all__ = ["MaskVLM", "MaskVLMConfig"]
