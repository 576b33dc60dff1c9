from models.vq.model import VQ, VQConfig

__all__ = ["VQ", "VQConfig"]
