"""The factor that keeps small gradients of fp16 above zero, adapted to what overflows.

The loss is multiplied before the backward pass and the gradients are divided after it, so the
factor changes no result, only what fp16 can hold on the way. Every rank decides from the norm of
the same global gradient, so all ranks have the same factor without asking each other.
"""

import math
from typing import Any

INITIAL = 2.0**16
LOWEST = 1.0
"""A gradient that overflows even unscaled is the model's fault, not the factor's."""
HIGHEST = 2.0**24
"""A gradient norm times this is still far from fp32's limit."""
GROWTH_INTERVAL = 2000
"""Good steps in a row after which the factor is doubled."""


class LossScale:
    """Halved by every overflow, doubled after many steps without one.

    Args:
        is_enabled: Off for every precision but fp16; the factor is then 1 for good.

    Attributes:
        value: The factor, a power of two.
    """

    def __init__(self, *, is_enabled: bool) -> None:
        self.is_enabled = is_enabled
        self.value = INITIAL if is_enabled else 1.0
        self._good_steps = 0

    @property
    def can_fall(self) -> bool:
        """Whether an overflow may be the factor's doing."""
        return self.is_enabled and self.value > LOWEST

    def update(self, grad_norm: float) -> None:
        """Adapt the factor to the norm of the global gradient that it was used for."""
        if not self.is_enabled:
            return
        if not math.isfinite(grad_norm):
            self.value = max(self.value / 2, LOWEST)
            self._good_steps = 0
            return
        self._good_steps += 1
        if self._good_steps == GROWTH_INTERVAL:
            self.value = min(self.value * 2, HIGHEST)
            self._good_steps = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; nothing where it is off."""
        if not self.is_enabled:
            return {}
        return {"loss_scale": self.value, "good_steps": self._good_steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint; what it lacks stays as it is."""
        if self.is_enabled:
            self.value = float(state.get("loss_scale", self.value))
            self._good_steps = int(state.get("good_steps", self._good_steps))
