from models.blip2.model import BLIP2, BLIP2Config

__all__ = ["BLIP2", "BLIP2Config"]
