"""Serves: replica, scorer, HTTP API, and the evaluator, which is a replica that keeps score. Never torch."""

import infra  # noqa: F401  # kernels find their cache before the first one is imported
