"""The graph of artefacts: what each is made of, where it is stored, and the workspace that computes it."""
