"""Tables: the rows of a split in file order, whatever format they are stored in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskvec.data.locate import Located
from taskvec.data.tasks import Corpus, ImageTask, Task
from taskvec.errors import UserError

if TYPE_CHECKING:
    from taskvec.data.tables.base import Table


def open_table(name: str, task: Task | Corpus, located: Located) -> Table:
    """Return the table of some files of a task.

    Raises:
        UserError: if the files cannot be read, or their format does not fit the task.
    """
    owner, paths = f"task {name}", located.paths
    if located.form == "parquet":
        from taskvec.data.tables.parquet import ParquetTable

        return ParquetTable(owner, paths)
    if located.form == "saved":
        from taskvec.data.tables.saved import open_saved

        return open_saved(owner, paths[0])
    if located.form == "images":
        if not isinstance(task, ImageTask):
            raise UserError(
                f"{owner}: {paths[0]} is a folder of folders; texts are read from Parquet, CSV or JSON lines"
            )
        from taskvec.data.tables.folder import FolderTable

        return FolderTable(owner, paths[0], task.image, task.label)
    from taskvec.data.tables.plain import CsvTable, JsonTable

    return CsvTable(owner, paths) if located.form == "csv" else JsonTable(owner, paths)
