"""One HTML page about a run: frames, the labels' timeline, training curves, the comparison."""
