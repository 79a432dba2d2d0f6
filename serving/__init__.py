"""Serves: replica, scorer, HTTP API, and the evaluator, which is a replica that keeps score. Never torch."""
