"""Recipes that learn one vector per task, one short file each."""
