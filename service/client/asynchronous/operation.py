"""The routes about everything but jobs and checkpoints as methods: comparisons, tokens, the service itself."""

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from service.client.answers import Catalogue, Cluster, Comparison, ComparisonCheck, ComparisonEntry, NewToken, Queued, Token, Usage
from service.client.asynchronous.requests import Requests
from service.client.routes import Json, ahead_s, route
from service.scopes import DEFAULT_PROJECT


class OperationCalls(Requests):
    """Comparisons, tokens for admins, and what the service says of itself."""

    async def compare(
        self, spec: Mapping[str, Any], values: Sequence[Any], *, field: str = "norm.kind", idempotency_key: str | None = None
    ) -> Comparison:
        """Submit one spec once for each value of a field, all or none, and return the comparison. Tried again where needed."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        ask = {"spec": dict(spec), "field": field, "values": list(values)}
        return await self._answer(Comparison, "POST", "/v1/comparisons", json=ask, headers=headers, is_repeatable=True)

    async def validate_comparison(self, spec: Mapping[str, Any], values: Sequence[Any], *, field: str = "norm.kind") -> ComparisonCheck:
        """Return the spec of every variant with every default, or raise BadRequest with everything that is wrong. Submits nothing."""
        ask = {"spec": dict(spec), "field": field, "values": list(values)}
        return await self._answer(ComparisonCheck, "POST", "/v1/comparisons", params={"dry_run": "true"}, json=ask, is_repeatable=True)

    def comparisons(self, *, limit: int | None = None) -> AsyncIterator[ComparisonEntry]:
        """Yield comparisons, newest first, without their tables."""
        return self._pages(ComparisonEntry, "/v1/comparisons", {}, limit)

    async def comparison(self, comparison_id: str) -> Comparison:
        """Return a comparison with its table."""
        return await self._answer(Comparison, "GET", route("comparisons", comparison_id))

    async def delete_comparison(self, comparison_id: str) -> None:
        """Delete a comparison whose jobs have ended. The jobs stay."""
        await self._transport.request("DELETE", route("comparisons", comparison_id))

    async def create_token(
        self, name: str, scopes: Sequence[str], *, project: str = DEFAULT_PROJECT, expires_in_s: float | None = None
    ) -> NewToken:
        """Make a token. Its `token` is in this answer and nowhere else."""
        document = {"name": name, "scopes": list(scopes), "project": project, "expires_in_s": expires_in_s}
        return await self._answer(NewToken, "POST", "/v1/tokens", json=document)

    def tokens(self, *, limit: int | None = None) -> AsyncIterator[Token]:
        """Yield tokens, newest first, expired and revoked ones too."""
        return self._pages(Token, "/v1/tokens", {}, limit)

    async def rotate_token(self, token_id: str, *, overlap_s: float = 3600) -> NewToken:
        """Make a token like another one, which ends after the overlap."""
        return await self._answer(NewToken, "POST", route("tokens", token_id, "rotate"), params={"overlap_s": overlap_s})

    async def revoke_token(self, token_id: str) -> None:
        """Have a token admitted no more."""
        await self._transport.request("DELETE", route("tokens", token_id), is_repeatable=True)

    async def cluster(self) -> Cluster:
        """Return what the cluster has and what is in use."""
        return await self._answer(Cluster, "GET", "/v1/cluster")

    async def usage(self) -> Usage:
        """Return what the groups of every quota use of it."""
        return await self._answer(Usage, "GET", "/v1/usage")

    def queue(self, *, limit: int | None = None) -> AsyncIterator[Queued]:
        """Yield the jobs that wait, in the order in which they may start, and why each waits."""
        return self._pages(Queued, "/v1/queue", {}, limit)

    async def models(self) -> Catalogue:
        """Return the models that a spec may name, with a JSON schema of their arguments."""
        return await self._answer(Catalogue, "GET", "/v1/models")

    async def datasets(self) -> Catalogue:
        """Return the data sets that a spec may name, with a JSON schema of their arguments."""
        return await self._answer(Catalogue, "GET", "/v1/datasets")

    async def norms(self) -> Catalogue:
        """Return the kinds of normalization that a spec may name, with a JSON schema of their arguments."""
        return await self._answer(Catalogue, "GET", "/v1/norms")

    async def describe(self) -> Json:
        """Return the service's OpenAPI document; its version is that of the service."""
        return await self._json("GET", "/openapi.json")

    async def clock_ahead_s(self) -> float:
        """Return by how much the service's clock is ahead of this machine's, to half a second and half the time of a request."""
        return ahead_s(await self._transport.request("GET", "/healthz"))

    async def alive(self) -> Json:
        """Return at once whether the process answers."""
        return await self._json("GET", "/healthz")

    async def ready(self) -> Json:
        """Return whether the service can do its work, part by part."""
        return await self._json("GET", "/readyz")
