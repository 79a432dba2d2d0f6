"""Events in, examples out: MIND reader and generator, replay, joiner, archive, and the features of both ends."""

import infra  # noqa: F401  # kernels find their cache before the first one is imported
