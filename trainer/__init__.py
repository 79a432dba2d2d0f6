"""Learns: the online minute loop, the nightly retrain, the net and its export."""
