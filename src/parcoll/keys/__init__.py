"""Keys: which elements belong together, where they go, and in which order they come back."""
