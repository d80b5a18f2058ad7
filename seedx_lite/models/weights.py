"""Modules on disk: `config.json` and `model.safetensors` in a folder, checked key by key when read."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def arguments(scope: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor whose first line hands its `locals()` over."""
    return {key: value for key, value in scope.items() if key not in ("self", "__class__")}


def save_folder(folder: Path, name: str, config: Mapping, tensors: Mapping[str, Tensor], dtype: torch.dtype):
    """Write `config` (with the class `name` in it) and `tensors`, cast to `dtype`, to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().to("cpu", dtype).contiguous() for k, v in tensors.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"_class_name": name, **config}, indent=1) + "\n")


def saved_class(folder: Path) -> str | None:
    """The name of the class whose module a folder holds; None where it cannot be told, and reading it will say why."""
    try:
        return json.loads((folder / CONFIG).read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError):
        return None


def read_folder(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors that `save_folder` wrote for class `name`. Raises FileNotFoundError for a
    missing file, ValueError for a damaged one or one of another class."""
    for file in (folder / CONFIG, folder / WEIGHTS):
        if not file.is_file():
            wanted = f"expected a folder written by {name}.save_pretrained. Check the path, or train this stage again."
            raise FileNotFoundError(f"{file} is missing; {wanted}")
    try:
        config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
        found = config.pop("_class_name", None)
    except (ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{folder} is damaged ({error}); restore {CONFIG} and {WEIGHTS} together") from error
    if found != name:
        raise ValueError(f"{folder / CONFIG} describes {found}, expected {name}; give the folder of a {name}")
    return config, tensors


def build(make: Callable, config: Mapping[str, Any], source: Path) -> Any:
    """`make(**config)`; a key too many or too few becomes a ValueError that names the file."""
    try:
        return make(**config)
    except TypeError as error:
        raise ValueError(f"{source / CONFIG} does not fit: {error}; restore the file") from error


def check_keys(
    source: str | Path, name: str, missing: Collection[str], unexpected: Collection[str], reshaped: Collection[str]
) -> None:
    """Raises ValueError that lists the keys of `source` that do not fit a `name`, if any, and says what to do."""
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    if any(wrong.values()):
        lists = [f"{what}: {', '.join(sorted(k)[:6])}" + ", …" * (len(k) > 6) for what, k in wrong.items() if k]
        remedy = "Load it with the configuration and base model it was trained with, or train this stage again."
        raise ValueError(f"{source} does not fit {name}. Keys {'; '.join(lists)}. {remedy}")


def load_tensors(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path, required: Collection[str] | None = None
) -> None:
    """Copy `tensors` into `module`, in its own dtype. Names outside `required` (default: all) may be absent and keep
    their value. Raises ValueError that lists the keys that do not fit and says what to do."""
    own = module.state_dict()
    missing = (own.keys() if required is None else set(required)) - tensors.keys()
    shapes = {key: (list(tensors[key].shape), list(own[key].shape)) for key in own.keys() & tensors.keys()}
    reshaped = {f"{key} {there} instead of {here}" for key, (there, here) in shapes.items() if there != here}
    check_keys(source, type(module).__name__, missing, tensors.keys() - own.keys(), reshaped)
    module.load_state_dict(tensors, strict=False)


class SavedModule(nn.Module):
    """A module that can be written to a folder and read from it; `config` holds the arguments of its constructor."""

    config: dict[str, Any]
    device = property(lambda self: next(self.parameters()).device)  # as pipelines ask for them
    dtype = property(lambda self: next(self.parameters()).dtype)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.json` and `model.safetensors` (in `dtype`) to `folder`."""
        save_folder(Path(folder), type(self).__name__, self.config, self.state_dict(), dtype)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read a folder of `save_pretrained`: float32, eval mode. Raises FileNotFoundError or ValueError that names the
        file, the keys and what to do."""
        folder = Path(folder)
        config, tensors = read_folder(folder, cls.__name__)
        module = build(cls, config, folder)
        load_tensors(module, tensors, folder)
        return module.eval()
