"""Adapters: what is learned on top of a model's features from few labelled examples."""
