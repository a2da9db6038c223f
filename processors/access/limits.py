"""Rate limits, pure."""

from collections import OrderedDict

NAMES_MAX = 10_000


class Bucket:
    """A token bucket: `rate_per_s` on average, `burst` at once."""

    def __init__(self, rate_per_s: float, burst: float, now_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._tokens = burst
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        """Whether one more is allowed now."""
        self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._rate_per_s)
        self._at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Buckets:
    """A bucket for each name and rate, twice the rate at once; who has not come for longest is forgotten."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[tuple[str, float], Bucket] = OrderedDict()

    def take(self, name: str, rate_per_s: float, now_s: float) -> bool:
        """Whether one more is allowed to that name now."""
        key = name, rate_per_s
        bucket = self._buckets.pop(key, None) or Bucket(rate_per_s, max(1.0, 2 * rate_per_s), now_s)
        self._buckets[key] = bucket
        if len(self._buckets) > NAMES_MAX:
            self._buckets.popitem(last=False)
        return bucket.take(now_s)
