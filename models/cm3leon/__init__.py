from models.cm3leon.chameleon import Chameleon, ChameleonConfig
from models.cm3leon.config import CM3leonConfig
from models.cm3leon.model import CM3leon

__all__ = ["CM3leon", "CM3leonConfig", "Chameleon", "ChameleonConfig"]
