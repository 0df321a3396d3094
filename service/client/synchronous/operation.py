# Generated from service/client/asynchronous/operation.py by `make format`: change that file.
"""The routes about everything but jobs and checkpoints as methods: comparisons, tokens, the service itself."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from service.client.answers import Catalogue, Cluster, Comparison, ComparisonCheck, ComparisonEntry, NewToken, Queued, Token, Usage
from service.client.routes import Json, ahead_s, route
from service.client.synchronous.requests import Requests
from service.scopes import DEFAULT_PROJECT


class OperationCalls(Requests):
    """Comparisons, tokens for admins, and what the service says of itself."""

    def compare(
        self, spec: Mapping[str, Any], values: Sequence[Any], *, field: str = "norm.kind", idempotency_key: str | None = None
    ) -> Comparison:
        """Submit one spec once for each value of a field, all or none, and return the comparison. Tried again where needed."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        ask = {"spec": dict(spec), "field": field, "values": list(values)}
        return self._answer(Comparison, "POST", "/v1/comparisons", json=ask, headers=headers, is_repeatable=True)

    def validate_comparison(self, spec: Mapping[str, Any], values: Sequence[Any], *, field: str = "norm.kind") -> ComparisonCheck:
        """Return the spec of every variant with every default, or raise BadRequest with everything that is wrong. Submits nothing."""
        ask = {"spec": dict(spec), "field": field, "values": list(values)}
        return self._answer(ComparisonCheck, "POST", "/v1/comparisons", params={"dry_run": "true"}, json=ask, is_repeatable=True)

    def comparisons(self, *, limit: int | None = None) -> Iterator[ComparisonEntry]:
        """Yield comparisons, newest first, without their tables."""
        return self._pages(ComparisonEntry, "/v1/comparisons", {}, limit)

    def comparison(self, comparison_id: str) -> Comparison:
        """Return a comparison with its table."""
        return self._answer(Comparison, "GET", route("comparisons", comparison_id))

    def delete_comparison(self, comparison_id: str) -> None:
        """Delete a comparison whose jobs have ended. The jobs stay."""
        self._transport.request("DELETE", route("comparisons", comparison_id))

    def create_token(
        self, name: str, scopes: Sequence[str], *, project: str = DEFAULT_PROJECT, expires_in_s: float | None = None
    ) -> NewToken:
        """Make a token. Its `token` is in this answer and nowhere else."""
        document = {"name": name, "scopes": list(scopes), "project": project, "expires_in_s": expires_in_s}
        return self._answer(NewToken, "POST", "/v1/tokens", json=document)

    def tokens(self, *, limit: int | None = None) -> Iterator[Token]:
        """Yield tokens, newest first, expired and revoked ones too."""
        return self._pages(Token, "/v1/tokens", {}, limit)

    def rotate_token(self, token_id: str, *, overlap_s: float = 3600) -> NewToken:
        """Make a token like another one, which ends after the overlap."""
        return self._answer(NewToken, "POST", route("tokens", token_id, "rotate"), params={"overlap_s": overlap_s})

    def revoke_token(self, token_id: str) -> None:
        """Have a token admitted no more."""
        self._transport.request("DELETE", route("tokens", token_id), is_repeatable=True)

    def cluster(self) -> Cluster:
        """Return what the cluster has and what is in use."""
        return self._answer(Cluster, "GET", "/v1/cluster")

    def usage(self) -> Usage:
        """Return what the groups of every quota use of it."""
        return self._answer(Usage, "GET", "/v1/usage")

    def queue(self, *, limit: int | None = None) -> Iterator[Queued]:
        """Yield the jobs that wait, in the order in which they may start, and why each waits."""
        return self._pages(Queued, "/v1/queue", {}, limit)

    def models(self) -> Catalogue:
        """Return the models that a spec may name, with a JSON schema of their arguments."""
        return self._answer(Catalogue, "GET", "/v1/models")

    def datasets(self) -> Catalogue:
        """Return the data sets that a spec may name, with a JSON schema of their arguments."""
        return self._answer(Catalogue, "GET", "/v1/datasets")

    def norms(self) -> Catalogue:
        """Return the kinds of normalization that a spec may name, with a JSON schema of their arguments."""
        return self._answer(Catalogue, "GET", "/v1/norms")

    def describe(self) -> Json:
        """Return the service's OpenAPI document; its version is that of the service."""
        return self._json("GET", "/openapi.json")

    def clock_ahead_s(self) -> float:
        """Return by how much the service's clock is ahead of this machine's, to half a second and half the time of a request."""
        return ahead_s(self._transport.request("GET", "/healthz"))

    def alive(self) -> Json:
        """Return at once whether the process answers."""
        return self._json("GET", "/healthz")

    def ready(self) -> Json:
        """Return whether the service can do its work, part by part."""
        return self._json("GET", "/readyz")
