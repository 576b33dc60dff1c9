from models.magic.locked import LockedMAGIC, LockedMAGICConfig
from models.magic.model import MAGIC, MAGICConfig
from models.magic.search import Search

__all__ = ["MAGIC", "LockedMAGIC", "LockedMAGICConfig", "MAGICConfig", "Search"]
