"""What the script's process has: its state, its modules as they are now, its logging, its `__main__`."""
