"""The table's benchmark: `make bench-table`."""
