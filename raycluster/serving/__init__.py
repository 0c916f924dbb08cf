"""The endpoint: an HTTP API on Ray Serve that assigns pictures to clusters."""
