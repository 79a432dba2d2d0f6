"""The joiner: rows of `events` in, examples and drop reasons out."""
