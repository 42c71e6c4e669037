"""Who may ask, how much, and under what: keys, rate limits, policies."""
