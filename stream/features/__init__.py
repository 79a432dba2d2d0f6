"""Features: what is known of an impression and of the items shown, as it was when they were shown."""
