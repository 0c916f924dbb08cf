"""List pictures into a manifest: folders, buckets, tars, tables, lists of URIs."""
