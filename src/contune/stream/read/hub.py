"""Data sets from the hub (or its local cache), through the `datasets` package."""

import json
from typing import Any, final

from contune.errors import DataError
from contune.stream.read.rows import RawTable
from contune.stream.read.tables import arrow_table


@final
class HubError(DataError):
    """The hub (or its local cache) has no such data set, or cannot be reached."""


def read_hub_splits(name: str, subset: str | None, splits: dict[str, str | None]) -> dict[str, RawTable]:
    """The named splits of a hub data set as tables; a split named None is taken if it exists under its usual name.

    `splits` maps train, test and validation to the hub's names. No code from the hub is run. Raises HubError where
    the set cannot be loaded, DataError where it lacks a split.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(name, subset)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise HubError(
            f"hub data set {name!r} could not be loaded ({reason}); check the id and its configuration (data.name), "
            "connect to the network, or give local files with data.train and data.test"
        ) from error
    tables: dict[str, RawTable] = {}
    for role, given in splits.items():
        chosen = given if given is not None else role
        if chosen in loaded:
            tables[role] = _split_table(f"{name} ({chosen} split)", loaded[chosen])
        elif given is not None or role != "validation":
            raise DataError(
                f"hub data set {name!r} has no split {chosen!r}; its splits are {', '.join(map(repr, loaded))}; "
                f"name the right one with data.{role}"
            )
    return tables


def _split_table(source: str, split: Any) -> RawTable:
    import datasets

    for column, feature in split.features.items():
        if isinstance(feature, datasets.Image):
            split = split.cast_column(column, datasets.Image(decode=False))
    table = split.with_format("arrow")[:]
    if table.num_rows == 0:
        raise DataError(f"{source} is empty; choose another split")
    # The metadata in the schema does not follow casts and renames; the features do.
    labels = {
        column: {"_type": "ClassLabel", "names": feature.names}
        for column, feature in split.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    metadata = json.dumps({"info": {"features": labels}})
    schema = table.schema.with_metadata({"huggingface": metadata})
    return arrow_table(source, schema, table.column, table.num_rows)
