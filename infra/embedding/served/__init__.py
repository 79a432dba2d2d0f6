"""Rows as replicas serve them: a table that is read while it changes, at three precisions."""
