from models.clip.model import CLIP, CLIPConfig

__all__ = ["CLIP", "CLIPConfig"]
