"""What all processes stand on, and the arrows between them: event log, parameter store, embedding table."""
