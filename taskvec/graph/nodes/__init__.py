"""One class for each kind of artefact: what it is made of, from what, and how."""
