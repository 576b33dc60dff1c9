from models.asif.model import ASIF, ASIFConfig

__all__ = ["ASIF", "ASIFConfig"]
