"""Learning from recorded episodes: objectives, sampling, reference log-probabilities, training."""
