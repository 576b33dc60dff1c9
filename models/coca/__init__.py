from models.coca.model import CoCa, CoCaConfig
from models.coca.virtex import VirTex, VirTexConfig, VirTexTokens, VirTexTokensConfig

__all__ = ["CoCa", "CoCaConfig", "VirTex", "VirTexConfig", "VirTexTokens", "VirTexTokensConfig"]
