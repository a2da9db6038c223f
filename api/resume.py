"""A caller comes back: the session is rebuilt from its log, whichever gateway had it before."""

from collections.abc import Callable

from api.calls import Call
from api.dialects.dialect import Dialect, Resume
from api.history import History, Wanted
from api.journal import Journal
from api.line import Line
from api.replay import replay
from api.resume_tokens import ResumeToken
from api.session_router import LiveCall, SessionRouter, Summary, summary_of
from api.waiting import Arrival, Waiting
from streams.client import LogError
from streams.keys import partition_of

GONE = "resumed_elsewhere"


async def take_up(
    router: SessionRouter,
    dialect: Dialect,
    line: Line,
    resume: Resume,
    token: ResumeToken,
    on_end: Callable[[], None],
) -> Call | str | None:
    """The call, told and playing; the reason for which it has ended; None where the log has no start of it.

    Raises LogError, and then the session still waits.
    """
    session_id = token.session_id
    await router.read_partition(partition_of(session_id, router.settings.kafka.partitions))
    holder = router.find(session_id)
    # From here on what the log gets is kept, so that nothing is missing between its end as read and what comes after.
    arrival = Arrival(Summary(session_id, token.tenant, "", dialect.channel, token.since_us))
    router.put(arrival)
    try:
        if holder is not None:
            await holder.release()
        turn = resume.received.turn if resume.received is not None else None
        history = await router.histories.of(Wanted(session_id, token.since_us, turn))
    except LogError:
        _give_back(router, arrival, holder)
        raise
    if arrival.gone:
        return GONE
    if history is None or history.ended is not None:
        router.forget(arrival)
        return history.ended.reason if history is not None and history.ended is not None else None
    return await _go_on(router, dialect, line, resume, history, arrival, on_end)


async def _go_on(
    router: SessionRouter,
    dialect: Dialect,
    line: Line,
    resume: Resume,
    history: History,
    arrival: Arrival,
    on_end: Callable[[], None],
) -> Call:
    now_ms, wall_ms = router.clock.monotonic_s() * 1000, router.clock.now_us() / 1000
    settings = router.settings.api
    replayed = replay(history, resume, now_ms, wall_ms, settings.barge_in_ms, settings.lead_ms)
    started, marks = history.started, history.marks
    # A client that has not kept all that the log lacks goes on behind the gap.
    marks.sample_index = max(marks.sample_index, resume.kept_from)
    summary = summary_of(started, marks.turn)
    journal = Journal(router, started, marks)
    call = Call(router, dialect, line, journal, summary, on_end, replayed.playback)
    await call.resume(replayed, arrival.events, [event.event_id for _, event in history.events])
    if history.hang_up_asked:
        call.end("hung_up")
    return call


def _give_back(router: SessionRouter, arrival: Arrival, holder: LiveCall | None) -> None:
    """The log does not answer: the session waits on, where this gateway had it."""
    router.forget(arrival)
    if isinstance(holder, Call | Waiting):
        Waiting(router, holder.journal, holder.summary).wait()
