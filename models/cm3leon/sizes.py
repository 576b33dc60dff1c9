"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from models.cm3leon.config import CM3leonConfig
from models.contract import Size

TABLE = "the layers of arXiv 2309.02591, table 2, built as transformers' OPT; the paper says {}"

SIZES = (
    Size("small", CM3leonConfig.small()),
    Size("350 M", CM3leonConfig.m350(), 372_246_528, TABLE.format("350 M"), ("decoder",), 0.001),
    Size("760 M", CM3leonConfig.m760(), 784_862_208, TABLE.format("760 M"), ("decoder",), 0.001),
    Size("paper: 7 B", CM3leonConfig.paper(), 6_723_477_504, TABLE.format("7 B"), ("decoder",), 0.001),
)
