"""What the events say, as questions to ClickHouse: one row of its tables is one event, whose first copy counts.

Times are UTC; `since` is within the period, `until` is not. docs/sla.md has the definitions in words.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from processors.sla.objectives import PERCENTILES, Tier

LOST_AFTER_H = 1  # without a frame of audio or a word from its gateway, which ends a silent call after two minutes
LONGEST_CALL_DAYS = 8

_IN = "{since:DateTime64(6, 'UTC')} <= occurred_at AND occurred_at < {until:DateTime64(6, 'UTC')}"
_TENANT = "tenant_id = {tenant:String}"

# Calls that ended, or were lost, in the period: (session_id, at, failure); failure is empty for those that succeeded.
_ENDED = f"""
SELECT session_id, min(occurred_at) AS at, argMin(toString(reason), occurred_at) AS ending
FROM sessions WHERE {_TENANT} AND kind = 'ended' AND {_IN} GROUP BY session_id"""

_OPEN = f"""
SELECT session_id FROM sessions
WHERE {_TENANT} AND occurred_at >= {{since:DateTime64(6, 'UTC')}} - INTERVAL {LONGEST_CALL_DAYS} DAY
AND occurred_at < {{until:DateTime64(6, 'UTC')}}
GROUP BY session_id HAVING countIf(kind = 'started') > 0 AND countIf(kind = 'ended') = 0"""

_LAST_SIGNS = " UNION ALL ".join(
    f"SELECT session_id, max(occurred_at) AS last FROM {table} "
    f"WHERE {_TENANT} AND session_id IN ({_OPEN}) GROUP BY session_id"
    for table in ("sessions", "audio_frames")
)

_LOST = f"""
SELECT session_id, max(last) + INTERVAL {LOST_AFTER_H} HOUR AS at, 'lost' AS ending
FROM ({_LAST_SIGNS}) GROUP BY session_id
HAVING {{since:DateTime64(6, 'UTC')}} <= at AND at < {{until:DateTime64(6, 'UTC')}}"""

_WHOSE = f"SELECT session_id FROM sessions WHERE {_TENANT} AND kind = 'ended' AND {_IN}"

_LAST_ANSWERS = f"""
SELECT session_id, argMax(toString(outcome), (turn, seq)) AS outcome FROM responses
WHERE {_TENANT} AND kind = 'completed' AND committed AND session_id IN ({_WHOSE})
GROUP BY session_id"""

_LAST_TURNS = f"""
SELECT session_id, max(turn) AS last_turn, argMax(isNull(first_audio_at), turn) AS silent,
       argMax(ifNull(speech_ended_at, final_at), turn) AS asked_at
FROM turns WHERE {_TENANT} AND final_at IS NOT NULL AND session_id IN ({_WHOSE})
GROUP BY session_id"""

_SHOWN = f"""
SELECT DISTINCT session_id, turn FROM speech_chunks
WHERE {_TENANT} AND kind = 'text' AND session_id IN ({_WHOSE})"""

_CALLS = f"""
SELECT over.session_id AS session_id, over.at AS at,
       multiIf(ending IN ('failed', 'shutdown'), 'error', ending = 'lost', 'lost', outcome = 'failed', 'apology',
               silent AND (session_id, last_turn) NOT IN ({_SHOWN})
               AND dateDiff('millisecond', assumeNotNull(asked_at), at) >= {{answer_within_ms:UInt32}}, 'unanswered',
               '') AS failure
FROM ({_ENDED} UNION ALL {_LOST}) AS over
LEFT JOIN ({_LAST_ANSWERS}) AS answers ON over.session_id = answers.session_id
LEFT JOIN ({_LAST_TURNS}) AS turns ON over.session_id = turns.session_id"""

_TURNS = f"""
SELECT greatest(first_audio_at, final_at) AS at, total_ms FROM turns
WHERE {_TENANT} AND turn > 0 AND isNotNull(first_audio_at) AND isNotNull(total_ms) AND session_id IN (
    SELECT session_id FROM transcripts WHERE {_TENANT} AND kind = 'final'
    AND occurred_at >= {{since:DateTime64(6, 'UTC')}} - INTERVAL 1 HOUR
    AND occurred_at < {{until:DateTime64(6, 'UTC')}})
AND {{since:DateTime64(6, 'UTC')}} <= at AND at < {{until:DateTime64(6, 'UTC')}}"""

_FINALS = f"""
SELECT occurred_at AS at, confidence FROM transcripts
WHERE {_TENANT} AND kind = 'final' AND {_IN} ORDER BY occurred_at LIMIT 1 BY event_id"""

_REFUSED = f"""
SELECT occurred_at AS at, refused FROM health
WHERE {_TENANT} AND kind = 'calls_refused' AND {_IN} ORDER BY occurred_at LIMIT 1 BY event_id"""

_LIMITS = ", ".join(f"('voice_to_voice_p{n}', total_ms > {{p{n}_ms:Float64}})" for n in PERCENTILES)

_COUNTED = f"""
SELECT 'session_success' AS objective, at, toUInt64(1) AS events, toUInt64(failure != '') AS bad FROM ({_CALLS})
UNION ALL SELECT 'session_success', at, toUInt64(refused), toUInt64(refused) FROM ({_REFUSED})
UNION ALL SELECT judged.1, assumeNotNull(at), toUInt64(1), toUInt64(judged.2)
    FROM (SELECT at, arrayJoin([{_LIMITS}]) AS judged FROM ({_TURNS}))
UNION ALL SELECT 'stt_confidence', at, toUInt64(1), toUInt64(confidence < {{at_least:Float32}}) FROM ({_FINALS})"""

# (objective, start of the minute in seconds since the epoch, events, bad)
BY_MINUTE = f"""
SELECT objective, toUnixTimestamp(toStartOfMinute(at)) AS minute, sum(events), sum(bad) FROM ({_COUNTED})
GROUP BY objective, minute"""

# (objective, events, bad) of the whole period, then of its last hour, six hours, three days, each as events and bad.
TOTALS = "SELECT objective, sum(events), sum(bad), {windows} FROM ({counted}) GROUP BY objective".format(
    windows=", ".join(
        f"sumIf({name}, at >= {{until:DateTime64(6, 'UTC')}} - INTERVAL {hours} HOUR)"
        for hours in (1, 6, 72)
        for name in ("events", "bad")
    ),
    counted=_COUNTED,
)

# (failure, calls)
FAILURES = f"""
SELECT failure, count() FROM (SELECT failure FROM ({_CALLS})) WHERE failure != '' GROUP BY failure
UNION ALL SELECT 'refused', sum(refused) FROM ({_REFUSED}) HAVING sum(refused) > 0"""

# Nearest rank: the smallest value that at least so many percent of the turns do not exceed.
_RANKS = ", ".join(f"ranked[intDiv({n} * length(ranked) + 99, 100)]" for n in PERCENTILES)
PERCENTILES_MS = f"""
SELECT {_RANKS} FROM (SELECT arraySort(groupArray(assumeNotNull(total_ms))) AS ranked FROM ({_TURNS}))"""

# (objective, level) as last reported.
LEVELS = f"""
SELECT objective, argMax(level, (occurred_at, seq)) FROM health
WHERE {_TENANT} AND kind IN ('burn_raised', 'burn_lowered') GROUP BY objective"""


def parameters(tenant: str, tier: Tier, since_us: int, until_us: int) -> Mapping[str, str]:
    """What the questions are asked with."""
    latency = tier.voice_to_voice_ms
    return {
        "tenant": tenant,
        "since": _time(since_us),
        "until": _time(until_us),
        "answer_within_ms": str(tier.session_success.answer_within_ms),
        "at_least": str(tier.stt_confidence.at_least),
        **{f"p{percent}_ms": str(getattr(latency, f"p{percent}")) for percent in PERCENTILES},
    }


def _time(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
