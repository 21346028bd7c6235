"""`make bench`: the whole pipeline against a bare nats-py chain of the same five hops, in one run, interleaved."""
