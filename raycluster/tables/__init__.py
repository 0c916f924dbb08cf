"""The tables of a run: their schemas, rows and files, and the markers that say which tables are finished."""
