"""The network of the scene reader: a small detector that finds the things of a picture, anew, without the tokenizer.

Two backbones, so that one can check the other: residual convolutions, which see edges and textures nearby, and a
transformer on patches, which sees the whole picture at once. Both give one feature per cell of 4×4 pixels, and the same
linear maps read from it what stands there (as in CenterNet: a thing is found at its centre).

Axes: B batch, H, W picture height and width, h = H/4, w = W/4 cells, D features.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .vit import Block
from .weights import SavedModule, arguments

CELL = 4  # px


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv_1, self.conv_2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, D, h, w] → [B, D, h, w]."""
        return x + self.conv_2(F.silu(self.norm_2(self.conv_1(F.silu(self.norm_1(x))))))


class ConvolutionBackbone(nn.Module):
    """Down to an eighth of the picture and back up to a quarter, with the fine features added."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        half, deep = width // 2, width * 3 // 2
        self.stem = nn.Sequential(nn.Conv2d(3, half, 3, stride=2, padding=1), ResidualBlock(half))
        self.fine = nn.Sequential(nn.Conv2d(half, width, 3, stride=2, padding=1), ResidualBlock(width))
        self.coarse = nn.Sequential(
            nn.Conv2d(width, deep, 3, stride=2, padding=1), *(ResidualBlock(deep) for _ in range(layers))
        )
        self.up = nn.Conv2d(deep, width, 1)
        self.join = nn.Sequential(ResidualBlock(width), nn.GroupNorm(8, width), nn.SiLU())

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] → features [B, D, h, w]."""
        fine = self.fine(self.stem(images))  # [B, D, h, w]
        coarse = F.interpolate(self.up(self.coarse(fine)), scale_factor=2.0)  # [B, D, h, w]
        return self.join(fine + coarse)


class TransformerBackbone(nn.Module):
    """A plain transformer on 4×4 patches; places are told by sines of row and column, so that any size can be read."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, CELL, stride=CELL)
        blocks = (Block(width, width // 32, 2 * width) for _ in range(layers))
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(width))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] → features [B, D, h, w]."""
        x = self.patches(images)  # [B, D, h, w]
        x = (x + sines(*x.shape[1:], device=x.device)).flatten(2).transpose(1, 2)  # [B, h·w, D]
        return self.blocks(x).transpose(1, 2).unflatten(2, (images.shape[2] // CELL, -1))


def sines(width: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Fixed vectors of rows and columns, of wavelengths from 4 to 64 cells: [D, h, w]."""
    waves = 2 * torch.pi / 4 / 16 ** torch.linspace(0, 1, width // 4, device=device)
    turns = [torch.arange(count, device=device)[:, None] * waves for count in (rows, columns)]  # [h, D/4], [w, D/4]
    row, column = (torch.cat([turn.sin(), turn.cos()], dim=1).T for turn in turns)
    return torch.cat([row[:, :, None].expand(-1, -1, columns), column[:, None, :].expand(-1, rows, -1)])


BACKBONES = {"convolution": ConvolutionBackbone, "transformer": TransformerBackbone}


class SceneReader(SavedModule):
    """Images [B, 3, H, W] in -1..1, sides multiples of 8 → what stands in each cell, and what the background is.

    Args:
        backbone: `convolution` or `transformer`. width: D, a multiple of 32. layers: of its deepest part.
        kinds, colours, poses, skies, grounds: names of the answers, in the order of the outputs.
    """

    def __init__(
        self,
        backbone: str,
        width: int,
        layers: int,
        kinds: list[str],
        colours: list[str],
        poses: list[str],
        skies: list[str],
        grounds: list[str],
    ) -> None:
        config = arguments(locals())
        super().__init__()
        if backbone not in BACKBONES or width % 32:
            known = " or ".join(BACKBONES)
            raise ValueError(f"scene reader: backbone {known} and a width of 32·n expected, got {backbone}, {width}")
        self.config = config
        self.backbone = BACKBONES[backbone](width, layers)
        each = {"centre": kinds, "colour": colours, "pose": poses, "facing": 2, "offset": 2, "size": 2}
        whole = {"sky": skies, "ground": grounds, "level": 2}
        self.cells = nn.ModuleDict({k: nn.Conv2d(width, _count(v), 1) for k, v in each.items()})
        self.wholes = nn.ModuleDict({k: nn.Linear(2 * width, _count(v)) for k, v in whole.items()})
        nn.init.constant_(self.cells["centre"].bias, -4.0)  # hardly any cell holds a centre

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the cells [B, D, h, w], and of the whole picture [B, 2·D]: mean and maximum over its cells.

        Raises ValueError for sides that are no multiples of 8.
        """
        if images.ndim != 4 or images.shape[1] != 3 or any(side % 8 for side in images.shape[2:]):
            raise ValueError(f"scene reader: [B, 3, H, W] with sides of 8·n px expected, got {list(images.shape)}")
        x = self.backbone(images)
        return x, torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs, float32.

        Of each cell, [B, …, h, w]: `centre` (a logit for each kind: is a thing of this kind centred here?); of the
        thing there `colour`, `pose`, `facing` (logits), `offset` (x, y from the middle of the cell to its centre, in
        cells) and `size` (logarithms of width and height in cells). Of the picture: `sky`, `ground` (logits) and
        `level` (light and horizon, see `Scene`).
        """
        x, whole = self.features(images)
        read = {name: head(x) for name, head in self.cells.items()}
        read |= {name: head(whole) for name, head in self.wholes.items()}
        return {name: value.float() for name, value in read.items()}


def _count(answers: list[str] | int) -> int:
    return answers if isinstance(answers, int) else len(answers)
