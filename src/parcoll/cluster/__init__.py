"""Any dask cluster as the user's process sees it, the local one included."""
