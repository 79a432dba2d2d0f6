"""Events in, examples out: MIND reader and generator, replay, joiner, archive, and the features of both ends."""
