"""`python -m data.importers coco|folder|table ...` (`make import ARGS="..."`): your own pictures as a data set."""

from __future__ import annotations

import sys

import tyro

from data.importers.coco import import_coco
from data.importers.folder import import_folder
from data.importers.table import import_table
from data.shards import DataError


def main() -> None:
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"coco": import_coco, "folder": import_folder, "table": import_table}, prog="make import ARGS=", description=__doc__
        )
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
