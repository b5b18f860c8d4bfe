"""A third-party plugin of gotr1: one judge."""
