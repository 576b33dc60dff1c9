"""`python -m data.importers auto|coco|folder|table|vqa|... ...` (`make import ARGS="..."`): import your own data."""

from __future__ import annotations

import sys
from collections.abc import Callable

import tyro

from data.importers.aro import import_aro
from data.importers.auto import import_auto
from data.importers.coco import import_coco
from data.importers.folder import import_folder
from data.importers.openmoji import import_openmoji
from data.importers.pages import import_pages
from data.importers.pope import import_pope
from data.importers.sugarcrepe import import_sugarcrepe
from data.importers.table import import_table
from data.importers.vqa import import_vqa
from data.importers.winoground import import_winoground
from data.shards import DataError

IMPORTERS: dict[str, Callable[..., None]] = {
    "auto": import_auto,
    "coco": import_coco,
    "folder": import_folder,
    "table": import_table,
    "pages": import_pages,
    "vqa": import_vqa,
    "pope": import_pope,
    "winoground": import_winoground,
    "sugarcrepe": import_sugarcrepe,
    "aro": import_aro,
    "openmoji": import_openmoji,
}


def main() -> None:
    try:
        tyro.extras.subcommand_cli_from_dict(IMPORTERS, prog="python -m data.importers", description=__doc__)
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
