"""Which offset of a partition may be committed: everything below it that was delivered is done."""

from collections import deque


class Ledger:
    """The records of one partition that were delivered, in offset order, and which of them are done.

    Offsets that were never delivered (compacted away, transaction markers) do not count, so they hold nothing up.
    """

    __slots__ = ("_done", "_open", "position")

    def __init__(self, position: int) -> None:
        self._open: deque[int] = deque()
        self._done: set[int] = set()
        #: The offset to commit: every delivered offset below it is done.
        self.position = position

    def delivered(self, offset: int) -> None:
        """Notes a record; offsets must rise. Raises ValueError where one does not, since order would be lost."""
        if offset < self.position or (self._open and offset <= self._open[-1]):
            raise ValueError(f"offset {offset} delivered again: {self.position} is the first that is not done")
        if not self._open:
            self.position = offset
        self._open.append(offset)

    def done(self, offset: int) -> None:
        """Notes that a delivered record is done; in any order, once or more often."""
        waiting = self._open
        if not waiting or offset < waiting[0]:
            return
        if offset != waiting[0]:
            self._done.add(offset)
            return
        waiting.popleft()
        after = offset + 1
        while waiting and waiting[0] in self._done:
            after = waiting.popleft() + 1
            self._done.discard(after - 1)
        self.position = waiting[0] if waiting else after

    def __len__(self) -> int:
        """How many delivered records lie at or above the position, done or not."""
        return len(self._open)
