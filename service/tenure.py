"""Which jobs this life of this controller looks after: takes leases, renews them, and says which were lost.

Owns the name that the controller goes by in leases. What is done with a job is the reconciler's business.
"""

import asyncio
from collections.abc import Callable, Collection

import structlog

from service.store.errors import DatabaseAwayError
from service.store.ids import new_job_id
from service.store.records import Lease
from service.store.store import Store

LEASE_S = 10.0
"""How long a controller may be silent before another takes over what it looked after."""
RENEW_S = LEASE_S / 4

log = structlog.get_logger()


class Tenure:
    """The leases of one controller."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[str, Lease] = {}
        self._done: set[str] = set()
        self.holder = new_job_id().replace("job_", "controller_")

    async def take(self, names: Collection[str]) -> None:
        """Take those of the leases that can be had, and are not held already; give back those that are done with."""
        done, self._done = self._done, set()
        if done:
            await self._store.leases.give_back(self.holder, done)
        wanted = [name for name in names if name not in self._held]
        # Dropped since the line above, and taken again: giving it back later would take it from whoever works under it by then.
        self._done.difference_update(wanted)
        self._held |= await self._store.leases.take(wanted, self.holder, LEASE_S)

    def under(self, name: str) -> Store | None:
        """Return the store as it may be written under a lease; None where the lease is not held here."""
        lease = self._held.get(name)
        return None if lease is None else self._store.under(lease)

    def drop(self, name: str) -> None:
        """Be done with a lease: the next `take` gives it back."""
        if self._held.pop(name, None) is not None:
            self._done.add(name)

    async def keep(self, on_lost: Callable[[str], None]) -> None:
        """Renew for ever. `on_lost` is told each lease that was lost; whoever acts under it must stop."""
        while True:
            await asyncio.sleep(RENEW_S)
            asked = dict(self._held)
            try:
                kept = await self._store.leases.renew(self.holder, LEASE_S)
            except DatabaseAwayError as error:
                log.warning("leases_not_renewed", error=str(error))
                continue
            # By term: one that was dropped and taken anew meanwhile is another one.
            for name, lease in asked.items():
                if name not in kept and self._held.get(name) == lease:
                    log.warning("lease_lost", lease=name, term=lease.term)
                    del self._held[name]
                    on_lost(name)

    async def end(self) -> None:
        """Give everything back, so that the next controller need not wait; also what was being taken when the taker was cancelled."""
        self._held.clear()
        await self._store.leases.give_back(self.holder)
