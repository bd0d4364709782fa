"""The mathematics of carrying task vectors to another backbone: maps between spaces, and what they do to parameters."""
