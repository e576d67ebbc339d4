"""What a run came to: ``page`` is one HTML page with frames, the labels' timeline, training curves
and the comparison; ``terminal`` the comparison alone."""
