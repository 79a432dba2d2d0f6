"""Learns: the online minute loop, the nightly retrain, the net and its export."""

import infra  # noqa: F401  # kernels find their cache before the first one is imported
