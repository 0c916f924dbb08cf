"""Access to files on local disks and S3: locations, clients, credentials, the lock of a run folder, and probes of a storage."""
