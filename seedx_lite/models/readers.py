"""Linear readers of single visual embeddings: they teach the ViT in pre-training and show afterwards what it knows.

Axes: B batch, T tokens, D their width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .weights import SavedModule


class TokenHeads(SavedModule):
    """One linear map for each question to a token, and a small network that matches whole pictures with captions.

    dim: D. cell: side in px of the square of the picture that belongs to a token. text_dims: widths of the text
    encoders' pooled outputs, against which the mean of the network over all tokens is matched. classes: name of a
    question, such as `kind`, and its number of answers; besides, `box`, `place` and `pixels` are told as numbers.
    """

    def __init__(self, dim: int, cell: int, text_dims: tuple[int, int], classes: dict[str, int]) -> None:
        super().__init__()
        self.config = {"dim": dim, "cell": cell, "text_dims": list(text_dims), "classes": dict(classes)}
        answers = classes | {"box": 4, "place": 2, "pixels": 3 * cell * cell}
        self.readers = nn.ModuleDict({name: nn.Linear(dim, count) for name, count in answers.items()})
        self.image_projection = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, sum(text_dims)))
        self.logit_scale = nn.Parameter(torch.full((2,), 2.66))

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """tokens [B, T, D] → for each reader its raw output [B, T, …]."""
        return {name: reader(tokens) for name, reader in self.readers.items()}

    def embed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B, T, D] → unit vectors to compare with those of the first and the second text encoder."""
        both = self.image_projection(tokens).mean(dim=1)
        return tuple(F.normalize(part, dim=-1) for part in both.split(self.config["text_dims"], dim=-1))
