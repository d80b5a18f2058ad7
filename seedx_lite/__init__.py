"""SEED-X on a laptop: a tokenizer, a de-tokenizer and a language model that read and draw through one bridge.

Importing the package costs milliseconds: torch and its kin are imported by the submodule that needs them,
when it is first used.
"""

__version__ = "0.1.0"

# Public name -> the submodule it lives in (PEP 562).
_LAZY = {"Preset": "presets", "load_preset": "presets"}
__all__ = ["Preset", "__version__", "load_preset"]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
