"""From a chain to its results: plan, feed, window; and the engine that they need, whichever it is."""
