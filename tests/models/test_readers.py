"""Linear readers of tokens."""

import torch

from seedx_lite.models.readers import TokenHeads


def test_readers_come_back_whole(tmp_path):
    """Bug: the numbers of classes are lost on the way to disk, and the readers open with other shapes."""
    heads = TokenHeads(8, 2, (3, 5), {"kind": 4, "pose": 2})
    tokens = torch.randn(2, 6, 8)
    read = heads(tokens)
    assert {name: tuple(out.shape) for name, out in read.items()} == {
        "kind": (2, 6, 4), "pose": (2, 6, 2), "box": (2, 6, 4), "place": (2, 6, 2), "pixels": (2, 6, 12)
    }  # fmt: skip
    heads.save_pretrained(tmp_path)
    again = TokenHeads.from_pretrained(tmp_path)
    assert torch.equal(again(tokens)["kind"], read["kind"])
    for part, width in zip(again.embed(tokens), (3, 5), strict=True):
        assert part.shape == (2, width) and torch.allclose(part.norm(dim=1), torch.ones(2))
