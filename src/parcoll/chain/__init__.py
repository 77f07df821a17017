"""Steps, and the loop that takes elements through them: no process, no dask."""
