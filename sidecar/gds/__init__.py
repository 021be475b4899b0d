"""Objects that GPUs move between their memory and files themselves, past the L1."""
