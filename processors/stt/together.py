"""Steps of several readings in one call of the model, where they would otherwise wait for each other.

There is no schedule: who finds the model free takes along those that have been waiting for it with a step of the same
kind. So a reading that is alone is never held up, and the more there is to do, the more is done at a time (dynamic
batching as in Triton, which waits only where it is told to).
"""

import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Unwanted(Exception):  # noqa: N818 - no error: nobody waits for the result any more
    """The reading was withdrawn while its step waited."""


class _Reading(threading.local):
    """What this thread reads: how urgent, whether still wanted, and how much of its time went to others."""

    urgent: bool = True
    wanted: Callable[[], bool] = staticmethod(lambda: True)
    others_s: float = 0.0


class _Job:
    """One reading's step, from its thread's call to its end; `share_s` is its part of the call's time."""

    def __init__(self, kind: Hashable, call: Callable[[Sequence[Any]], Sequence[Any]], item: Any, mine: _Reading):
        self.kind = (mine.urgent, kind)
        self.call = call
        self.item = item
        self.wanted = mine.wanted
        self.urgent = mine.urgent
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.share_s = 0.0

    def end(self, result: Any = None, error: BaseException | None = None, share_s: float = 0.0) -> None:
        self.result, self.error, self.share_s, self.done = result, error, share_s, True


class Together:
    """Lets threads share the calls of models that share a processor; at most `at_once_max` steps in each.

    One call is under way at a time. A call that has room waits for others, `wait_s` at most, while there are readings
    under way that have yet to ask for their next step.
    """

    def __init__(self, at_once_max: int = 1, wait_s: float = 0.0) -> None:
        self.at_once_max = at_once_max
        self._wait_s = wait_s
        self._model = threading.Lock()
        self._changed = threading.Condition()
        self._jobs: list[_Job] = []
        self._readings = 0
        self._mine = _Reading()

    @contextlib.contextmanager
    def reading(self, urgent: bool, wanted: Callable[[], bool]) -> Iterator[None]:
        """This thread's steps belong to one reading; the steps of urgent ones go first, with none of the others."""
        self._mine.urgent, self._mine.wanted, self._mine.others_s = urgent, wanted, 0.0
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    @property
    def alone(self) -> bool:
        """Whether one reading is under way and no more."""
        return self._readings == 1

    @property
    def others_s(self) -> float:
        """How much of the time since this thread's reading began went to others: waiting for them, and their share."""
        return self._mine.others_s

    def do(self, kind: Hashable, call: Callable[[Sequence[T]], Sequence[R]], item: T) -> R:
        """What `call` gives for this item, made for all of the same `kind` that wait, too: results in items' order.

        Where it raises for several, each is tried alone: nobody fails for another's sake, and a call of one needs less
        memory. What it raises for one is raised here. Raises Unwanted where the reading was withdrawn before.
        """
        began_s = time.perf_counter()
        job = _Job(kind, call, item, self._mine)
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()
        while not job.done:
            with self._model:
                if not job.done:
                    self._lead()
        self._mine.others_s += time.perf_counter() - began_s - job.share_s
        if job.error is not None:
            raise job.error
        result: R = job.result
        return result

    def _count(self, by: int) -> None:
        with self._changed:
            self._readings += by
            self._changed.notify_all()

    def _lead(self) -> None:
        """Makes the next call, for everybody who is in it; this thread holds the model."""
        jobs = self._take()
        if not jobs:
            return
        if len(jobs) == 1:
            self._alone(jobs[0])
            return
        began_s = time.perf_counter()
        with contextlib.suppress(Exception):  # whoever it is that makes it fail will raise it again
            results = jobs[0].call([job.item for job in jobs])
            share_s = (time.perf_counter() - began_s) / len(jobs)
            for job, result in zip(jobs, results, strict=True):
                job.end(result, share_s=share_s)
            return
        for job in jobs:  # with nothing left of the attempt, whose memory may be needed
            self._alone(job)

    @staticmethod
    def _alone(job: _Job) -> None:
        began_s = time.perf_counter()
        try:
            (result,) = job.call([job.item])
        except Exception as error:
            job.end(error=error, share_s=time.perf_counter() - began_s)
        else:
            job.end(result, share_s=time.perf_counter() - began_s)

    def _take(self) -> list[_Job]:
        """The steps of the next call, no longer in the queue: the first urgent one, or else the first, and its like."""
        with self._changed:
            for job in self._jobs:
                if not job.wanted():
                    job.end(error=Unwanted())
            self._jobs = [job for job in self._jobs if not job.done]
            if not self._jobs:
                return []
            first = next((job for job in self._jobs if job.urgent), self._jobs[0])
            self._changed.wait_for(lambda: not self._awaits(first), self._wait_s)
            taken = [job for job in self._jobs if job.kind == first.kind][: self.at_once_max]
            self._jobs = [job for job in self._jobs if job not in taken]
            return taken

    def _awaits(self, first: _Job) -> bool:
        """Whether there is room in its call, and somebody who may come to fill it."""
        alike = sum(job.kind == first.kind for job in self._jobs)
        return alike < self.at_once_max and self._readings > len(self._jobs)
