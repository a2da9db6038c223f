"""A caller comes back: the session is rebuilt from its log, whichever gateway had it before."""

from collections.abc import Callable

from api.calls import AHEAD_MS_MAX, Call
from api.dialects.dialect import Dialect, Resume
from api.history import History, Wanted
from api.journal import Journal
from api.line import Line
from api.replay import replay
from api.session_router import SessionRouter, summary_of
from api.track import SAMPLES_PER_MS
from api.waiting import Arrival, Waiting
from schemas.events import Session
from streams.keys import partition_of


async def take_up(
    router: SessionRouter,
    dialect: Dialect,
    line: Line,
    resume: Resume,
    arrival: Arrival,
    stop: Callable[[int, str], None],
) -> Call | str | None:
    """The call, told and playing; the reason for which it has ended; None where the log has no start of it.

    None, too, where the arrival is `gone`. The call tells `stop` by which code and reason its socket is to be closed.
    Raises LogError; then, and when it is cancelled, the session still waits.
    """
    wanted = arrival.summary
    await router.read_partition(partition_of(wanted.session_id, router.settings.kafka.partitions))
    former = router.find(wanted.session_id)
    # From here on what the log gets is kept, so that nothing is missing between its end as read and what comes after.
    router.put(arrival)
    try:
        await arrival.replace(former)
        turn = resume.received.turn if resume.received is not None else None
        history = await router.histories.of(Wanted(wanted.session_id, wanted.started_at, turn))
        if history is not None and history.ended is None and not arrival.gone:
            return await _go_on(router, dialect, line, resume, history, arrival, stop)
    except BaseException:
        _give_back(router, arrival)
        raise
    router.forget(arrival)
    ended = history.ended if history is not None and not arrival.gone else None
    return ended.reason if ended is not None else None


async def _go_on(
    router: SessionRouter,
    dialect: Dialect,
    line: Line,
    resume: Resume,
    history: History,
    arrival: Arrival,
    stop: Callable[[int, str], None],
) -> Call:
    now_ms, wall_ms = router.clock.monotonic_s() * 1000, router.clock.now_us() / 1000
    settings = router.settings.api
    replayed = replay(history, resume, now_ms, wall_ms, settings.barge_in_ms, settings.lead_ms)
    started, marks = history.started, history.marks
    # A client that has not kept all that the log lacks goes on behind the gap.
    marks.sample_index = max(marks.sample_index, min(resume.kept_from, _spoken_max(started, wall_ms)))
    summary = summary_of(started, marks.turn)
    journal = Journal(router, started, marks)

    def on_end() -> None:
        stop(call.close_code, call.close_reason)

    call = Call(router, dialect, line, journal, summary, on_end, replayed.playback)
    try:
        await call.resume(replayed, arrival.events, [event.event_id for _, event in history.events])
    except BaseException:
        call.lost()
        call.finished()  # no connection has it that would say so
        raise
    if history.hang_up_asked:
        call.end("hung_up")
    return call


def _spoken_max(started: Session, wall_ms: float) -> int:
    """Samples that the caller can have sent by then: an index beyond would be a time that no event can carry."""
    spoken_ms = max(0.0, wall_ms - started.occurred_at / 1000) + AHEAD_MS_MAX
    return round(spoken_ms * SAMPLES_PER_MS)


def _give_back(router: SessionRouter, arrival: Arrival) -> None:
    """The session waits on, where this gateway had it; not where another has its place, or the gateway leaves."""
    holder = arrival.holder
    if not router.forget(arrival) or arrival.gone or not isinstance(holder, Call | Waiting):
        return
    waiting = Waiting(router, holder.journal, holder.summary)
    waiting.wait()
    for event in arrival.events:
        waiting.deliver(event)
