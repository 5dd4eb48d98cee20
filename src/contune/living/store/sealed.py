"""JSON that knows whether it was changed: a record holds the hash of all else that it holds."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contune.errors import RunDirectoryError

SEAL = "seal"


def sha256(data: bytes) -> str:
    """Hex sha256."""
    return hashlib.sha256(data).hexdigest()


def canonical(value: Any) -> bytes:
    """The one way to write a JSON value, so that equal values have equal bytes.

    >>> canonical({"b": 1, "a": ["é"]}).decode()
    '{"a":["é"],"b":1}'
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def digest(value: Any) -> str:
    """The hash of a JSON value."""
    return sha256(canonical(value))


def sealed(value: Mapping[str, Any]) -> bytes:
    """A record as bytes: readable JSON with the hash of all other entries under `seal`.

    >>> unsealed(sealed({"a": 1}))
    {'a': 1}
    """
    whole = {**value, SEAL: digest(value)}
    return json.dumps(whole, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1).encode() + b"\n"


def sealed_line(value: Mapping[str, Any]) -> bytes:
    """A record as one line."""
    return canonical({**value, SEAL: digest(value)}) + b"\n"


def unsealed(data: bytes, where: str = "the record") -> dict[str, Any]:
    """The record that these bytes are, to the last bit; raises RunDirectoryError where they are not as they were written."""
    try:
        value: dict[str, Any] = json.loads(data.decode())
        seal = value.pop(SEAL)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise RunDirectoryError(f"{where} is damaged: it is no record of contune ({error})") from error
    if seal != digest(value) or data not in (sealed(value), sealed_line(value)):
        raise RunDirectoryError(f"{where} is damaged: it does not match its checksum")
    return value


def read_sealed(path: Path) -> dict[str, Any]:
    """The record in a file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error}") from error
    return unsealed(data, str(path))
