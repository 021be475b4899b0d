"""The subcommands of `kv-sidecar`, one file each; sidecar.cli lists them."""
