"""List pictures into a manifest, fetch their bytes and decode them. A bad picture gets a status and raises no exception."""
