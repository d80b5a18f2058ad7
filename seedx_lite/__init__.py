"""SEED-X on a laptop: a tokenizer, a de-tokenizer and a language model that read and draw through one bridge.

Importing the package costs milliseconds: torch and its kin are imported by the submodule that needs them.
"""

from seedx_lite.presets import Preset, load_preset

__version__ = "0.1.0"
__all__ = ["Preset", "__version__", "load_preset"]
