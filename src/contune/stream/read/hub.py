"""Data sets from the hub (or its local cache), through the `datasets` package."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, final

from contune.errors import DataError
from contune.stream.read.rows import RawTable
from contune.stream.read.tables import BATCH_ROWS, arrow_table


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
            tables[role] = dataset_table(f"{name} ({chosen} split)", loaded[chosen])
        elif given is not None or role != "validation":
            raise DataError(
                f"hub data set {name!r} has no split {chosen!r}; its splits are {', '.join(map(repr, loaded))}; "
                f"name the right one with data.{role}"
            )
    return tables


def dataset_table(source: str, split: Any) -> RawTable:
    """One split of a `datasets` set, whose rows are read where they lie; images stay encoded."""
    import datasets

    for column, feature in split.features.items():
        if isinstance(feature, datasets.Image):
            split = split.cast_column(column, datasets.Image(decode=False))
    if len(split) == 0:
        raise DataError(f"{source} is empty; choose another split")
    arrow = split.with_format("arrow")

    def batches(names: Sequence[str]) -> Iterator[Any]:
        for start in range(0, len(split), BATCH_ROWS):
            # A memory-mapped set is read where these rows lie; one batch, whatever the chunks were.
            yield from arrow[start : start + BATCH_ROWS].select(list(dict.fromkeys(names))).to_batches()

    # The metadata in the schema does not follow casts and renames; the features do.
    labels = {
        column: {"_type": "ClassLabel", "names": feature.names}
        for column, feature in split.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    metadata = json.dumps({"info": {"features": labels}})
    schema = split.features.arrow_schema.with_metadata({"huggingface": metadata})
    return arrow_table(source, schema, batches, len(split))
