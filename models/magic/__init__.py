from models.magic.model import MAGIC, MAGICConfig
from models.magic.search import Search

__all__ = ["MAGIC", "MAGICConfig", "Search"]
