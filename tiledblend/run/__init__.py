"""A composite made on a cluster: planned, handed out tile by tile, resumed, recomputed to check.

Where tasks run: `options` say it, `cluster` gives the client, of threads and processes here (`local`) or of a running
`scheduler`; `machine` says what this process may use.
"""
