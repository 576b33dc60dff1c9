from models.cm3leon.model import CM3leon, CM3leonConfig

__all__ = ["CM3leon", "CM3leonConfig"]
