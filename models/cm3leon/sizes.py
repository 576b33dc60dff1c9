"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from models.cm3leon.config import CM3leonConfig
from models.contract import Size

TABLE = "the layers of arXiv 2309.02591, table 3, built as transformers' OPT; the paper says {}"

SIZES = (
    Size("small", CM3leonConfig.small()),
    Size("350 M", CM3leonConfig.m350(), source=TABLE.format("350 M"), counted=("decoder",), rounded=0.001, derived=372_246_528),
    Size("760 M", CM3leonConfig.m760(), source=TABLE.format("760 M"), counted=("decoder",), rounded=0.001, derived=784_862_208),
    Size("paper: 7 B", CM3leonConfig.paper(), source=TABLE.format("7 B"), counted=("decoder",), rounded=0.001, derived=6_723_477_504),
)
