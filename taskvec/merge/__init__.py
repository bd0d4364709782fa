"""Ways to combine task vectors into one model, one short file each."""
