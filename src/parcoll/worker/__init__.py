"""Worker: what a worker is asked, does and answers. It needs no more than every dask worker has."""
