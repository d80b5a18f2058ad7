import io

import pytest
from PIL import Image


@pytest.fixture
def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((32, 24)).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path, jpeg):
    """A folder with `a.jpg`, `b.jpg`, and `broken.jpg`, which is cut off."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, data in (("a", jpeg), ("b", jpeg), ("broken", jpeg[: len(jpeg) // 2])):
        (folder / f"{name}.jpg").write_bytes(data)
    return folder
