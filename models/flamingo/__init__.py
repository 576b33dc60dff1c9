from models.flamingo.model import Flamingo, FlamingoConfig
from models.flamingo.vcgpt import VCGPT, VCGPTConfig
from models.flamingo.visualgpt import VisualGPT, VisualGPTConfig

__all__ = ["VCGPT", "Flamingo", "FlamingoConfig", "VCGPTConfig", "VisualGPT", "VisualGPTConfig"]
