"""mergekit's recipes, read as they are, for the methods that we have."""
