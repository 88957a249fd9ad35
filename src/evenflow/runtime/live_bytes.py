"""Counts the bytes of all tensors that are alive, exactly and at every operator: what a memory prediction is held to.

An allocator reports what it took from the system, and a process its pages; both depend on more than the tensors. Here
each storage is counted from the operator that makes it until the last reference to it is gone, autograd's included.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Within, counts the tensors of the thread that entered it, backward included where it runs in that thread (CPU).

    Attributes:
        now: bytes alive of what was made inside, and of what was told to `count`.
        peak: the most there was at once since `mark`.
    """

    def __init__(self, not_counted: Iterable[Tensor] = ()) -> None:
        """Start from nothing.

        Args:
            not_counted: tensors whose memory is not counted, though operators return views of it.
        """
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own lacks annotations
        self.now = 0
        self.peak = 0
        self._lock = threading.RLock()  # a tensor may be let go of in another thread than it was made in
        self._ignored = weakref.WeakSet(tensor.untyped_storage() for tensor in not_counted)
        self._counted: weakref.WeakKeyDictionary[UntypedStorage, None] = weakref.WeakKeyDictionary()

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made elsewhere."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage in self._counted or storage in self._ignored:
                continue
            self._counted[storage] = None
            self._change(storage.nbytes())
            weakref.finalize(storage, self._change, -storage.nbytes())

    def mark(self) -> None:
        """Start the peak afresh."""
        self.peak = self.now

    def alive(self) -> weakref.WeakKeyDictionary[UntypedStorage, None]:
        """The memory that is counted now, in the order in which it was made; what is let go of leaves it."""
        return weakref.WeakKeyDictionary(self._counted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count the memory that it made: not what it was given, and wrote to or looks at."""
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage() for tensor in _tensors((args, *(kwargs or {}).values()))}
        self.count(tensor for tensor in _tensors(result) if tensor.untyped_storage() not in given)
        return result

    def _change(self, size: int) -> None:
        with self._lock:
            self.now += size
            self.peak = max(self.peak, self.now)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
