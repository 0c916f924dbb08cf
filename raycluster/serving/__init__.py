"""The endpoint: pictures in, clusters out, over HTTP, on Ray Serve."""
