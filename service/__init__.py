"""The controller: REST API, queue, store, reconciler, dashboard; and its Python client and CLI. Never loads torch."""
