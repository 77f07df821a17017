"""Files: what is read from files and written to them, in which format, and how that is all or nothing."""
