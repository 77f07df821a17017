"""Chain: the steps, and the loop that takes elements through them. Knows no process and no dask."""
