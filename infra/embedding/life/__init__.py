"""When a key gets a row and when it loses it: the policy, and what decides by it."""
