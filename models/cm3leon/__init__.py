from models.cm3leon.config import CM3leonConfig
from models.cm3leon.model import CM3leon

__all__ = ["CM3leon", "CM3leonConfig"]
