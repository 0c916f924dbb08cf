"""Pictures: list them into a manifest, fetch their bytes, decode them; a bad picture gets a status, no exception."""
