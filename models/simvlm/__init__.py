from models.simvlm.model import SimVLM, SimVLMConfig

__all__ = ["SimVLM", "SimVLMConfig"]
