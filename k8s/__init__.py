"""The Kubernetes manifests, and what renders and checks them (`make k8s`)."""
