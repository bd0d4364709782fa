"""Backbones, each in the canonical layout: every weight matrix is its own ``nn.Linear`` that is really called."""
