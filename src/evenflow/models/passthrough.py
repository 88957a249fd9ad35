"""Modules that stand where another stage's blocks would be, and the gates where this stage's work begins and ends.

Between two stages lie the hidden states as they enter a block. A stage runs the model's own forward: what comes before
its first block works on zeros and is thrown away, since the received hidden states enter in their place; and what comes
after its last block is not reached, since the forward ends where the next stage's begins. So whatever a model does with
its embeddings happens on the first stage, once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evenflow.models.probe import Returned, hidden_of, with_hidden


@dataclass(eq=False)
class Reached(BaseException):
    """The forward has come to the end of its stage: no error, and no `except Exception` of a model may catch it."""

    hidden: Tensor


@dataclass(slots=True)
class Gate:
    """What enters a stage in the forward under way."""

    received: Tensor | None = None
    handles: list[Any] = field(default_factory=list)

    def take(self) -> Tensor:
        """The received hidden states, which enter once."""
        assert self.received is not None, "hidden states enter a stage once in a forward"
        received, self.received = self.received, None
        return received

    def enter_at(self, block: nn.Module) -> None:
        """Have the received hidden states take the place of what `block` is handed."""

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            del module
            return with_hidden(args, kwargs, self.take())

        self.handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))

    def leave_after(self, block: nn.Module, returned: Returned) -> None:
        """Have the forward end with what `block` returns."""

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            del module, args
            raise Reached(returned.hidden(output))

        self.handles.append(block.register_forward_hook(leave))


class PassThrough(nn.Module):
    """Hands its hidden states on in the structure that the block in its place returns.

    It keeps the plain attributes of the block that it stands for, since models read some off their layers
    (`layer.attention_type`, say).
    """

    def __init__(self, stands_for: nn.Module, returned: Returned) -> None:
        super().__init__()
        for name, value in vars(stands_for).items():
            if not name.startswith("_") and isinstance(value, bool | int | float | str | None):
                setattr(self, name, value)
        self._returned = returned
        # Models ask their parameters for device and type, and a stage may leave a module none of its own.
        self.empty = nn.Parameter(torch.empty(0, device="meta"), requires_grad=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Hand the hidden states on."""
        return self._returned.fill(self.hidden(args, kwargs))

    def hidden(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """What it hands on: what it was given."""
        return hidden_of(args, kwargs)


class Entrance(PassThrough):
    """The last block before a stage that holds no block: it hands on what was received."""

    def __init__(self, stands_for: nn.Module, returned: Returned, gate: Gate) -> None:
        super().__init__(stands_for, returned)
        self._gate = gate

    def hidden(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """What was received."""
        del args, kwargs
        return self._gate.take()


class Exit(PassThrough):
    """The first block after a stage: the forward ends here, with what it is given or, after no work, with the input."""

    def __init__(self, stands_for: nn.Module, returned: Returned, gate: Gate) -> None:
        super().__init__(stands_for, returned)
        self._gate = gate

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """End the forward.

        Raises:
            Reached: always.
        """
        raise Reached(hidden_of(args, kwargs) if self._gate.received is None else self._gate.take())
