"""Output: elements on their way into files and tables: as bytes, cut into files, put in their places."""
