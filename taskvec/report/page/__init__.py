"""One self-contained page over any set of runs, and the server that follows a sweep with it."""
