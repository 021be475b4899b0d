"""What caches of other sizes and policies would have hit, from a trace of requests."""
