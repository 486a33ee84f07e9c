"""Loss scale of fp16: keeps small gradients above zero, and adapts to overflows.

The loss is multiplied before the backward pass and the gradients are divided after it, so the scale
does not change results, only what fp16 can represent in between. Every rank decides by the norm of
the same global gradient, so all ranks have the same scale without communication.
"""

import math
from typing import Any

INITIAL = 2.0**16
LOWEST = 1.0
"""If a gradient overflows even without scaling, the model is at fault, not the scale."""
HIGHEST = 2.0**24
"""A gradient norm times this is still far below fp32's limit."""
GROWTH_INTERVAL = 2000
"""Number of finite steps in a row after which the scale is doubled."""


class LossScale:
    """Loss scale that every overflow halves, and many steps without overflow double.

    Args:
        is_enabled: False for every precision except fp16; the scale then stays 1.

    Attributes:
        value: The scale, a power of two.
    """

    def __init__(self, *, is_enabled: bool) -> None:
        self.is_enabled = is_enabled
        self.value = INITIAL if is_enabled else 1.0
        self._good_steps = 0

    @property
    def can_fall(self) -> bool:
        """Whether an overflow may be due to the scale."""
        return self.is_enabled and self.value > LOWEST

    def update(self, grad_norm: float) -> None:
        """Adapt the scale to the norm of the global gradient that was computed with it."""
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
        """Return what a checkpoint keeps; empty if the scale is off."""
        if not self.is_enabled:
            return {}
        return {"loss_scale": self.value, "good_steps": self._good_steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint; missing entries keep their values."""
        if self.is_enabled:
            self.value = float(state.get("loss_scale", self.value))
            self._good_steps = int(state.get("good_steps", self._good_steps))
