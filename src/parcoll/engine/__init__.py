"""Where an evaluation runs: in this process, on a local cluster, on a remote dask scheduler."""
