"""Looks at every tenant's budgets again and again, in the sink's process: what the tables hold is what it goes by.

Counts are kept by minute for three days. At the start they are asked for whole; after that, only the last hour is
asked for anew, and not even that where the sink wrote nothing. Rows that come later than an hour are in reports, and
not in alerts.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import structlog
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from prometheus_client import Gauge

from processors.sla import queries
from processors.sla.budget import KEPT_S, MINUTE_S, Budgets, Burn, Counts
from processors.sla.objectives import Objective, Tier
from schemas.events import HealthKind
from streams.clock import Clock

log = structlog.get_logger(__name__)

AGAIN_S = 3600

burning = Gauge("trunkline_sla_burn_rate", "How many times too fast a budget is spent.", ["tenant", "objective"])


class Reports(Protocol):
    """The part of `processors.health.Health` that is used here."""

    def report(
        self,
        kind: HealthKind,
        *,
        level: int = 0,
        reason: str = "",
        objective: str = "",
        burn_rate: float = 0.0,
        window_s: int = 0,
        tenant: str = "",
    ) -> None:
        """Publishes an event; never raises."""
        ...


class BudgetWatch:
    """For one event loop. `connect` makes a client of its own, at the first look, so that no start waits for it;
    `written` grows whenever the sink has written something.
    """

    def __init__(
        self,
        tiers: Mapping[str, Tier],
        connect: Callable[[], Client],
        reports: Reports,
        clock: Clock,
        written: Callable[[], int],
        look_s: float = 60.0,
    ) -> None:
        self._tiers = tiers
        self._connect = connect
        self._client: Client | None = None
        self._reports = reports
        self._clock = clock
        self._written = written
        self._look_s = look_s
        self._budgets: dict[str, Budgets] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    async def run(self) -> None:
        """Looks until it is cancelled. While ClickHouse is away nothing is known, and nothing is said."""
        while self._tiers:
            await self._clock.sleep(self._look_s)
            for tenant, tier in self._tiers.items():
                try:
                    await self.look(tenant, tier)
                except (ClickHouseError, OSError) as error:
                    log.warning("budgets not known", tenant=tenant, error=type(error).__name__)
                except Exception:
                    # A mistake here must not cost the tables their rows.
                    log.exception("budgets not known", tenant=tenant)

    async def look(self, tenant: str, tier: Tier) -> None:
        """Takes in what is new, and reports the objectives whose level has changed."""
        now_s = self._clock.now_us() // 1_000_000
        written = self._written()
        budgets = self._budgets.get(tenant)
        if budgets is None:
            levels = {str(name): int(level) for name, level in await self._ask(queries.LEVELS, tenant, tier, 0, now_s)}
            budgets = Budgets(tier.objectives, levels)
        seen, asked_s = self._seen.get(tenant, (-1, 0))
        if seen != written or now_s - asked_s >= AGAIN_S:
            back_s = AGAIN_S if tenant in self._budgets else KEPT_S
            since_s = (now_s - back_s) // MINUTE_S * MINUTE_S
            rows = await self._ask(queries.BY_MINUTE, tenant, tier, since_s, now_s)
            counts = {(str(name), int(at)): Counts(int(events), int(bad)) for name, at, events, bad in rows}
            budgets.put(counts, since_s, now_s)
            self._budgets[tenant], self._seen[tenant] = budgets, (written, now_s)
        for objective, burn, rose in budgets.changes(now_s):
            self._tell(HealthKind.BURN_RAISED if rose else HealthKind.BURN_LOWERED, tenant, objective, burn)
        for objective in budgets.objectives:
            burning.labels(tenant, objective.name).set(budgets.burn(objective, now_s).rate)

    async def _ask(self, query: str, tenant: str, tier: Tier, since_s: int, now_s: int) -> Any:
        given = queries.parameters(tenant, tier, since_s * 1_000_000, now_s * 1_000_000)
        return await asyncio.to_thread(self._rows, query, given)

    def _rows(self, query: str, given: Mapping[str, str]) -> Any:
        if self._client is None:
            self._client = self._connect()
        settings = {"max_threads": 1, "max_execution_time": 30}
        return self._client.query(query, parameters=dict(given), settings=settings).result_rows

    def close(self) -> None:
        """Lets go of the connection; to be called when `run` has ended."""
        if self._client is not None:
            self._client.close()

    def _tell(self, kind: HealthKind, tenant: str, objective: Objective, burn: Burn) -> None:
        window = burn.window
        reason = (
            f"{burn.long.bad} of {burn.long.events} were bad in {window.long_s // MINUTE_S} min, "
            f"{burn.short.bad} of {burn.short.events} in {window.short_s // MINUTE_S} min; "
            f"{100 * objective.allowed:g} % are allowed"
        )
        self._reports.report(
            kind,
            level=burn.level,
            objective=objective.name,
            burn_rate=burn.rate,
            window_s=window.long_s,
            reason=reason,
            tenant=tenant,
        )
