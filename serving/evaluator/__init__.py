"""Progressive validation: every impression is scored by the version that was certain to serve it, then counted."""
