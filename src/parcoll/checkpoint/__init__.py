"""Results on a disk: the format, and how chains and elements are compared with those that made them."""
