"""Ensembles in folders of Parquet files, a file for each chunk of rows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchivp.ensembles.values import Values, joined
from torchivp.journal import identity_of

_KEY = b"torchivp ensemble 1"
_ROW = "row"


@dataclass(frozen=True)
class _Place:
    """Where a block of rows is: the file, its place among the rows of the file, and how many rows it has."""

    path: Path
    start: int
    count: int


class _Folder:
    """The blocks in a folder.

    Args:
        path: of the folder, which need not exist.
        identity: of the ensemble; None to take what there is.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the folder holds something else.
    """

    def __init__(self, path: str | Path, identity: str | None):
        self.path, self._parquet = Path(path), _import_parquet()
        self.places: dict[int, _Place] = {}
        self.n = 0
        self.schema: Any = None
        self._table: tuple[Path, Any] | None = None
        for file in sorted(self.path.glob("*.parquet")):
            schema = self._parquet.read_schema(file)
            said = (schema.metadata or {}).get(_KEY)
            if said is None:
                raise ValueError(f"{self.path} holds {file.name}, which is no part of an ensemble: give another store=")
            about = json.loads(said)
            if identity is not None and about["identity"] != identity:
                raise ValueError(
                    f"{self.path} is the store of another ensemble (another function, inputs or arguments): give "
                    "store= another name, or delete the folder"
                )
            self.schema, self.n, start = schema, about["n"], 0
            for first, count in about["blocks"]:
                self.places[first] = _Place(file, start, count)
                start += count

    def __getitem__(self, first: int) -> Values:
        place = self.places[first]
        if self._table is None or self._table[0] != place.path:
            self._table = place.path, self._parquet.read_table(place.path)
        table = self._table[1].slice(place.start, place.count)
        about = json.loads(table.schema.metadata[_KEY])
        columns = [name for name in table.column_names if name != _ROW]
        arrays = {name: _to_numpy(table[name].combine_chunks(), about["shapes"][name]) for name in columns}
        return Values(about["layout"], arrays)


class Store:
    """A folder to which an ensemble is written as it comes.

    Args:
        path: of the folder, which is made if it does not exist.
        of: what identifies the ensemble; the folder of another one is refused.
        n: how many rows there will be.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the folder holds something else.
    """

    def __init__(self, path: str | Path, of: Sequence[Any], n: int):
        self._n = n
        self._identity = hashlib.sha256(repr(identity_of(of)).encode()).hexdigest()
        self._folder = _Folder(path, self._identity)
        self._folder.path.mkdir(parents=True, exist_ok=True)

    def __contains__(self, first: int) -> bool:
        return first in self._folder.places

    def __getitem__(self, first: int) -> Values:
        return self._folder[first]

    def add(self, firsts: Sequence[int], blocks: Sequence[Values]) -> None:
        """Write a chunk.

        Raises:
            ValueError: a table cannot hold its values.
        """
        import pyarrow as pa

        if blocks[0].has_events:
            raise ValueError(
                "a store holds a row of numbers for each row of an ensemble, and no log of events: return a dict of "
                "what is wanted of solution.events, or use checkpoint="
            )
        counts = [len(next(iter(block.arrays.values()))) for block in blocks]
        rows = [np.arange(first, first + count) for first, count in zip(firsts, counts, strict=True)]
        whole = joined(blocks, firsts)
        if _ROW in whole.arrays:
            raise ValueError("a store has a column 'row', the number of the row: call what solve returns otherwise")
        about = {
            "identity": self._identity,
            "n": self._n,
            "layout": whole.layout,
            "blocks": list(zip(firsts, counts, strict=True)),
            "shapes": {name: list(each.shape[1:]) for name, each in whole.arrays.items()},
        }
        columns = {_ROW: pa.array(np.concatenate(rows))}
        columns |= {name: _to_arrow(name, each) for name, each in whole.arrays.items()}
        table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about)})
        if self._folder.schema is None:
            self._folder.schema = table.schema
        elif not table.schema.equals(self._folder.schema):
            raise ValueError(
                "a store needs results of the same shape for all rows, and solve returns others for some: give "
                "t_eval, or use checkpoint="
            )
        path = self._folder.path / f"rows-{firsts[0]:010}-{firsts[-1] + counts[-1] - 1:010}.parquet"
        part = path.with_name(f".{path.name}.part")
        self._folder._parquet.write_table(table, part)
        os.replace(part, path)
        start = 0
        for first, count in zip(firsts, counts, strict=True):
            self._folder.places[first] = _Place(path, start, count)
            start += count


class StoredEnsemble:
    """An ensemble in a folder of Parquet files, which pandas, Polars, DuckDB and others read as one table.

    A row of the table is a row of the ensemble; its number is in the column `row`. The columns are called like the
    tensors that `solve` returned, "value" if that was a single one.

    Args:
        path: of the folder.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: there is no ensemble.

    Attributes:
        path: of the folder.
        n: how many rows it will have when the ensemble is through.
    """

    def __init__(self, path: str | Path):
        self._folder = _Folder(path, None)
        self.path, self.n = self._folder.path, self._folder.n
        if not self._folder.places:
            raise ValueError(f"{self.path} holds no ensemble: give the folder that store= was")

    def __len__(self) -> int:
        """The number of rows in it."""
        return sum(place.count for place in self._folder.places.values())

    def __iter__(self) -> Iterator[Any]:
        """What `solve` returned for each block of rows, in order."""
        return (self._folder[first].restore() for first in sorted(self._folder.places))

    def load(self) -> Any:
        """What `solve` would have returned for all rows at once.

        Raises:
            ValueError: rows are missing, as the ensemble was interrupted.
        """
        if len(self) < self.n:
            raise ValueError(
                f"{self.path} holds {len(self)} of {self.n} rows, since the ensemble was interrupted: call ensemble "
                "again with the same arguments, or iterate over the blocks that there are"
            )
        firsts = sorted(self._folder.places)
        return joined([self._folder[first] for first in firsts], firsts).restore()

    def __repr__(self) -> str:
        return f"StoredEnsemble({str(self.path)!r}, {len(self)} rows)"


def _import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError("store= writes Parquet files with pyarrow, which is missing: pip install pyarrow") from None
    return pyarrow.parquet


def _to_arrow(name: str, array: NDArray[Any]) -> Any:
    """A column: numbers, text, or lists in lists of fixed sizes."""
    import pyarrow as pa

    if array.dtype.kind == "c":
        raise ValueError(f"Parquet has no complex numbers: return torch.view_as_real({name})")
    if 0 in array.shape:
        raise ValueError(f"a store has no room for {name} without numbers, of shape {array.shape[1:]}: leave it out")
    column = pa.array(array.reshape(-1))
    for size in reversed(array.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def _to_numpy(column: Any, shape: Sequence[int]) -> NDArray[Any]:
    count = len(column)
    for _ in shape:
        column = column.flatten()
    if column.type in ("string", "large_string"):
        return np.array(column.to_pylist(), dtype=np.str_).reshape(count, *shape)
    return column.to_numpy(zero_copy_only=False).reshape(count, *shape)
