"""The numbers of an evaluation, and who shows them: table, progress bar, pipeline page, log."""
