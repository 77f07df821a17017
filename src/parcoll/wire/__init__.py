"""Objects to bytes and back, through shared memory where there is some; modules as source text."""
