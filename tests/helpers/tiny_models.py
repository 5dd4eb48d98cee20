"""The tiny models of the checks, for tests."""

from contune.checks.tiny_models import (
    ALL_MODELS,
    DECODERS,
    IMAGE_MODELS,
    IMAGE_SIZE,
    TEXT_ENCODERS,
    TEXT_MODELS,
    WIDTH,
    WRITERS,
    build_tiny,
    byte_tokenizer,
    save_tiny,
    t5_config,
)

__all__ = [
    "ALL_MODELS",
    "DECODERS",
    "IMAGE_MODELS",
    "IMAGE_SIZE",
    "TEXT_ENCODERS",
    "TEXT_MODELS",
    "WIDTH",
    "WRITERS",
    "build_tiny",
    "byte_tokenizer",
    "save_tiny",
    "t5_config",
]
