"""Configuration that makes an engine's workers use the sidecar; needs nothing but Python."""
