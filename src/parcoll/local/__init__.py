"""Local cluster: the host process that the user's process starts, and the scheduler and workers it forks."""
