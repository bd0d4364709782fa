"""Results as flat records and tables."""
