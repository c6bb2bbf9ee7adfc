"""Where runs and shards are kept: workdirs, gs://, leases, the local disk."""
