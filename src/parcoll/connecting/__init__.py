"""Connecting: which cluster evaluates: for a block, for the rest of a program, where several might."""
