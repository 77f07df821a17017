"""Watch: the numbers of an evaluation, and who shows them: a progress bar, a web page, the log."""
