"""What it is worth that a router sees what is below the GPU: Dynamo before two nodes."""
