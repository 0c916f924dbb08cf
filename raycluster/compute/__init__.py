"""Use of Ray: join a cluster, run and end tasks, reserve resources, and check what the nodes have in common."""
