"""What may bound the next token of a sequence.

`Generation` has at most one `Steering`. Whoever bounds the same sequence in two ways
builds one from the other: the budget of the reasoning holds the constraint that takes
over behind the end mark. `Intake.steer` is where they are put together.

For each row of logits that is sampled, in the order of the tokens, drafts included:

    if not steering.free:
        steering.mask(row)
    ... a token is drawn ...
    steering.accept(token)
    if steering.finished: the sequence ends with the reason STOP

A token that another process had generated is only accepted. Rows behind a wrong draft
are never shown, so nothing has to be taken back.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Steering(Protocol):
    """Bounds the tokens of one sequence. Mutable, owned by the step loop's thread."""

    @property
    def free(self) -> bool:
        """Whether any token may come next, so that the row need not be looked at.

        Only then may the token be drawn on the device.
        """

    @property
    def finished(self) -> bool:
        """Whether nothing may follow: the sequence ends without an end token."""

    @property
    def complete(self) -> bool:
        """Whether it may end here."""

    def mask(self, row: NDArray[np.float32]) -> None:
        """Set the logits of what must not come next to minus infinity, in place.

        Raises `DecodeFailed` when that cannot be told: this sequence alone ends.
        """

    def accept(self, token: int) -> None:
        """`token` comes next; an end token ends the sequence and is not shown here.

        Raises `DecodeFailed` for one that must not come.
        """
