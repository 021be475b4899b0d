"""L2: what was cached survives eviction and restarts, in backends behind adapters."""
