"""Who has which bytes of an HDF5 file.

Each structure claims its bytes before it is read, and who claims more than the file has is
stopped there: so the work is bounded by the file's size, whatever overlaps. The exact check, that
no two share a byte, comes at the end. Offsets and sizes are in bytes.
"""

from __future__ import annotations

from mlflow_ckpt.hdf5_types import Unlike

_MAX_STRUCTURES = 1_000_000


class Claims:
    """The structures and datasets of the file that fills `view`."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self._claimed: dict[int, int] = {}
        self._left = len(view)

    def claim(self, start: int, size: int) -> memoryview:
        """Its bytes.

        Raises:
            Unlike: If it has them not alone, or not at all.
        """
        if start + size > len(self.view):
            raise Unlike(f"a structure or dataset beyond the end of its file, at {start}")
        if start in self._claimed:
            raise Unlike(f"two references to one place, at {start}")
        if len(self._claimed) >= _MAX_STRUCTURES:
            raise Unlike(f"more than {_MAX_STRUCTURES} structures")
        if size > self._left:
            raise Unlike(f"two structures or datasets that share bytes, at {start} the latest")
        if size:
            self._claimed[start] = size
            self._left -= size
        return self.view[start : start + size]

    def check(self) -> None:
        """Look whether any two share a byte.

        Raises:
            Unlike: If two do.
        """
        before = 0
        for start in sorted(self._claimed):
            if start < before:
                raise Unlike(f"two structures or datasets that share bytes, at {start}")
            before = start + self._claimed[start]
