"""What keeps a run going, or ends it before money is wasted: signs of life, clocks, policies."""
