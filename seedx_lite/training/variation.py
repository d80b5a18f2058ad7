"""What one model of a comparison has otherwise than the main model."""

from dataclasses import dataclass, fields, replace
from typing import Any

from seedx_lite.presets import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Variation:
    """Its fields say it, each with the main model's value as its default."""

    learning_rate: float | None = None  # None: as the preset says

    @property
    def changes(self) -> dict[str, Any]:
        """What is otherwise than in the main model, by name."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) != one.default}

    def adjusted(self, config: TrainConfig) -> TrainConfig:
        """A training with the learning rate of the variant."""
        return replace(config, learning_rate=self.learning_rate) if self.learning_rate else config
