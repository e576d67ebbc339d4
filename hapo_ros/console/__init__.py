"""``hapo console``: what an operator sees and asks of a running deployment, in a terminal."""
