"""What runs inside a container. Nothing here is imported by the server; `sandbox.docker.bundle` ships it."""
