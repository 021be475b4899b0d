"""What the node holds, told to those who route requests (docs/routing.md)."""
