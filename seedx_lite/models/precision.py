"""In which precision a machine computes fastest, without harm to what comes out."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def native_bf16(device: torch.device) -> tuple[bool, str]:
    """Whether a device has units for bf16, and the reason in words."""
    if device.type == "cuda":
        capable = torch.cuda.is_bf16_supported(including_emulation=False)
        return capable, f"{torch.cuda.get_device_name(device)} {'computes' if capable else 'does not compute'} in bf16"
    if device.type != "cpu":
        return False, f"bf16 autocast is not used on {device.type}"
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    units = sorted(unit for unit, there in known.items() if "bf16" in unit and there)
    return bool(units), f"the CPU has {', '.join(units) or 'no bf16 unit, so that bf16 would be slower'}"


def quick_sampling(device: torch.device | str) -> AbstractContextManager:
    """A context in which products and convolutions are done in bf16 where the device has units for it, and as ever
    elsewhere. `python -m seedx_lite bench` times both."""
    device = torch.device(device)
    return torch.autocast(device.type, torch.bfloat16) if native_bf16(device)[0] else nullcontext()


class AttentionInFloat32(TorchFunctionMode):
    """Computes attention in float32 under autocast: on a CPU, PyTorch's fused kernel trains quicker in it than in bf16
    (a step of the `lite` ViT took .55 s and .65 s, and 1.20 s with attention written out, on two cores with AMX)."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            args = [x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
            kwargs = {k: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for k, x in kwargs.items()}
            return function(*args, **kwargs)
