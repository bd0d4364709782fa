"""Statistics of a model on examples: registered components, and one collector whose passes serve several of them.

A component's file holds its schema and loads torch lazily; ``passes`` runs the models, ``accumulators`` adds up.
"""
