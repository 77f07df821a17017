"""The processes of the local cluster: the host that the user's process starts, its scheduler and workers."""
