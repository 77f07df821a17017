"""Checkpoints: results on a disk, and how chains and elements are compared with those that made them."""
