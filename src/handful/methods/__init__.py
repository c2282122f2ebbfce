"""Ways to learn from images and few labels: one file a method, the file name is its name."""

import importlib
from pathlib import Path
from types import ModuleType

from handful.errors import UsageError, nearest

_NOT_METHODS = {"__init__", "contract"}


def method_names() -> list[str]:
    """Return the names of the built-in methods (the files of this folder)."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _NOT_METHODS)


def load_method(name: str) -> ModuleType:
    """Import a method's module: a built-in name, or the dotted name of a module outside the package.

    Raises:
        UsageError: no such method, or a module that lacks ``METHOD`` or ``Settings``.
    """
    if name in method_names():
        module = importlib.import_module(f"handful.methods.{name}")
    elif "." in name:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise UsageError(f"--method {name}: the module cannot be imported: {error}.") from error
    else:
        raise UsageError(f"there is no method '{name}'; {nearest(name, method_names())}")
    for attribute in ("METHOD", "Settings"):
        if not hasattr(module, attribute):
            raise UsageError(f"--method {name}: {module.__file__} does not define {attribute}.")
    return module
