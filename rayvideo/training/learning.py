"""Whether a run learns anything: a gradient has to reach every pair of the adapter with the first optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rayvideo.errors import UserError
from rayvideo.models.lora import PREFIX, untrained

NAMED = 3


class NothingLearnedError(UserError, RuntimeError):
    """No part of the adapter moves: the run would cost its time and change nothing."""


class FirstUpdates:
    """Looks at the adapter's gradients after each update until they have come.

    Weights would not tell: an adapter that another one was the start of is moved by weight decay too. And A's gradient
    is 0 as long as B is, as in every fresh adapter.

    Args:
        patience: Updates within which something must have moved.
        done: Whether the run goes on from a checkpoint, hence has moved already.
    """

    def __init__(self, patience: int, *, done: bool) -> None:
        self.watching = not done
        self._left = patience

    def look(self, step: int, gradients: Mapping[str, Tensor]) -> str | None:
        """What is to be warned of after the update of `step`, if anything; `gradients` are their means so far by name.

        Raises:
            NothingLearnedError: no pair has moved.
        """
        still = untrained(gradients)
        pairs = sum(".lora_B." in name for name in gradients)
        self._left -= 1
        if len(still) == pairs and self._left > 0:
            return None
        self.watching = False
        if len(still) == pairs:
            raise NothingLearnedError(
                f"step {step}: the adapter has not moved: no gradient of the judges reaches any of its {pairs} pairs "
                "of matrices; `rayvideo doctor` with this recipe says where it is lost"
            )
        if not still:
            return None
        named = [name.split(".lora_B.")[0].removeprefix(PREFIX) for name in still]
        return (
            f"step {step}: {len(still)} of the adapter's {pairs} pairs of matrices have not moved, and may never: no "
            f"gradient reaches {', '.join(named[:NAMED])}{', …' if len(named) > NAMED else ''}; leave such layers out "
            "of model.lora.targets"
        )
