from models.minigpt4.model import MiniGPT4, MiniGPT4Config
from models.minigpt4.v2 import MiniGPTv2, MiniGPTv2Config

__all__ = ["MiniGPT4", "MiniGPT4Config", "MiniGPTv2", "MiniGPTv2Config"]
