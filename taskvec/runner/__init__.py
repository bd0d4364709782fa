"""Compose, validate, fingerprint, skip or run, record, mirror."""
