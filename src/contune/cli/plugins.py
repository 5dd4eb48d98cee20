"""Recipes and parts of the user's own, named on the command line."""

import sys
from pathlib import Path

from contune.errors import ConfigError


def load_plugins(names: list[str] | None) -> list[str]:
    """Import the modules or files a user named on the command line; gives the recipes that came with them."""
    from importlib import import_module
    from importlib.util import module_from_spec, spec_from_file_location

    from contune.method.catalog import add_plugin, recipes

    before = set(recipes()) if names else set()
    for name in names or []:
        if name.endswith(".py"):
            spec = spec_from_file_location(Path(name).stem, name)
            if spec is None or spec.loader is None or not Path(name).is_file():
                raise ConfigError(f"no Python file {name}; give the file that holds your recipe")
            module = module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            try:
                module = import_module(name)
            except ImportError as error:
                raise ConfigError(f"cannot import plugin {name!r}: {error}") from error
        add_plugin(module)
    new = sorted(set(recipes()) - before) if names else []
    if names and not new:
        raise ConfigError(f"{names[-1]} holds no recipe: define a function with the return annotation -> Method")
    return new
