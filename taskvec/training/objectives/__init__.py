"""What is minimised: one short file per objective."""
