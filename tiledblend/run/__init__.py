"""A composite made on a cluster: planned, handed out tile by tile, resumed, recomputed to check."""
