"""One function per documented run, returning a full config; its docstring carries the evidence.

The order of the catalog is that of `darkroom recipes` and of `train-all`: first the files named here, then every other
one of this folder by its name.
"""

from importlib import import_module
from pkgutil import iter_modules

_FIRST = ("resnet18_study", "resnet18_strong", "fastnet", "swin_study", "simsiam_study", "untrained_study")

for _file in (*_FIRST, *(module.name for module in iter_modules(__path__))):
    import_module(f"{__name__}.{_file}")
