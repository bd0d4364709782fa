"""Ways to combine task vectors into one model, one short file each.

``taskvec.merge`` is this package and, called, the merge of vectors in memory
(:func:`taskvec.merge.in_memory.merge`): importing any module of the package binds its name in ``taskvec`` to it, so
that no function could keep that name.
"""

import sys
from types import ModuleType
from typing import Any


class _Merging(ModuleType):
    def __call__(
        self, vectors: Any, method: str = "task_arithmetic", base: Any = None, **options: Any
    ) -> Any:
        """Merge vectors (:func:`taskvec.merge.in_memory.merge`)."""
        from taskvec.merge.in_memory import merge

        return merge(vectors, method, base, **options)


sys.modules[__name__].__class__ = _Merging
