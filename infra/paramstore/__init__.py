"""The parameter store: versions in a log, snapshots in folders, one chain of digests through both (arrow 2)."""
