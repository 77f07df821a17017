"""Cluster: any dask cluster, as the user's process sees it."""
