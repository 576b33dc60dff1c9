from models.minigpt4.model import MiniGPT4, MiniGPT4Config

__all__ = ["MiniGPT4", "MiniGPT4Config"]
